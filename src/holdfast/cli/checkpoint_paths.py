"""Paths and arguments of checkpoints."""

from typing import Annotated

import typer

from holdfast.cli.names import complete_vm

VmOption = Annotated[str, typer.Argument(metavar="VM", help="The VM.", autocompletion=complete_vm)]
CheckpointArgument = Annotated[str, typer.Argument(metavar="NAME", help="The checkpoint.")]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def checkpoint_path(vm: str, checkpoint: str | None = None, verb: str = "") -> str:
    from urllib.parse import quote

    from holdfast.api.client import vm_path

    path = vm_path(vm, "checkpoints")
    if checkpoint is not None:
        path += f"/{quote(checkpoint, safe='')}"
    return f"{path}/{verb}" if verb else path


def seconds(text: str) -> int:
    """Of `90s`, `15m`, `1h`, `7d` or `2w`. Raises typer.BadParameter."""
    number, unit = text[:-1], text[-1:]
    if not number.isascii() or not number.isdigit() or unit not in _SECONDS or len(number) > 9:
        raise typer.BadParameter(f"{text!r} is no duration; write it like 15m, 1h or 7d")
    return int(number) * _SECONDS[unit]


def duration(value: int) -> str:
    """As people write it: the largest unit of which it is a whole number."""
    for unit, size in reversed(_SECONDS.items()):
        if value % size == 0 and value:
            return f"{value // size}{unit}"
    return f"{value}s"
