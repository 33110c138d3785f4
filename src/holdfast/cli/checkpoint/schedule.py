"""`holdfast checkpoint schedule`."""

from typing import Annotated

import typer

from holdfast.cli.checkpoint_paths import VmOption
from holdfast.cli.output import Format, FormatOption
from holdfast.spec.checkpoint import CheckpointWish

EXAMPLE = "holdfast checkpoint schedule web --every 1h --keep 24 --max-age 7d"


def command(
    vm: VmOption,
    every: Annotated[str | None, typer.Option(help="Time between two of them, like 15m, 1h or 1d.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Make none any more.")] = False,
    keep: Annotated[int | None, typer.Option(help="How many are kept.")] = None,
    max_age: Annotated[str | None, typer.Option(help="How long they are kept, like 7d.")] = None,
    type_: Annotated[CheckpointWish | None, typer.Option("--type", help="As for create.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Make checkpoints of a VM again and again, and delete the oldest of them. Without options: show it.

    Checkpoints that people made are never deleted by it. A VM that is off gets none.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.checkpoint_paths import seconds
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.checkpoint import schedule_sheet

    path = vm_path(vm, "checkpoint-schedule")
    changes: dict[str, object] = {
        "every_seconds": seconds(every) if every else None,
        "keep": keep,
        "max_age_seconds": seconds(max_age) if max_age else None,
        "type": type_,
    }
    with connect() as client:
        wire = client.wire("GET", path)
        wanted = wire | {key: value for key, value in changes.items() if value is not None}
        if off:
            wanted["every_seconds"] = None
        if wanted != wire:
            wire = client.wire("PUT", path, wanted)
    show(wire, format_, schedule_sheet)
