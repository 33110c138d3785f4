"""Points that are kept for somebody who changes what another host holds of them, though nobody has them open.

    pins/<token>     JSON: the token and the numbers of the points that it keeps

A pin keeps its points apart from those around them, so that what changed between two of them can be told;
what lies before the oldest of them may go into the base. It is moved in one step, and outlives restarts.
"""

from collections.abc import Collection
from pathlib import Path

from pydantic import Field, ValidationError

from holdfast.replication.store.files import Files
from holdfast.spec.model import Frozen

_NEW = ".new"
_LONGEST = 64 * 1024


class Pin(Frozen):
    version: int = 1
    token: str = Field(max_length=64)
    numbers: tuple[int, ...] = Field(max_length=16)


def read_pins(folder: Path) -> dict[str, tuple[int, ...]]:
    """All in a folder, by token; one that cannot be read keeps nothing."""
    found = {}
    for path in folder.iterdir():
        try:
            if path.stat().st_size > _LONGEST:
                continue
            pin = Pin.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        if pin.token == path.name:
            found[pin.token] = pin.numbers
    return found


def write_pin(folder: Path, files: Files, token: str, numbers: Collection[int]) -> None:
    """Durable when this returns; in place of an earlier one of that token. No numbers: it is removed.

    Raises OSError.
    """
    path = folder / token
    if not numbers:
        files.remove(path)
    else:
        scratch = path.with_name(path.name + _NEW)
        files.remove(scratch)
        pin = Pin(token=token, numbers=tuple(sorted(set(numbers))))
        files.write(scratch, 0, pin.model_dump_json().encode())
        files.sync(scratch)
        files.rename(scratch, path)
    files.sync_folder(folder)
