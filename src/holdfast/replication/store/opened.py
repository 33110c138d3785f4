"""Records of points that are open: what of the journal they keep, over restarts of the daemon too.

Owner: `points`. A record is written once, so that who only wants to read what a point is made of needs no
more than its file.
"""

from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name


class Region(Frozen):
    place: int
    """Of the first block, in the journal."""
    blocks: int


class OpenLayer(Frozen):
    """Tables over one file of the journal, for one disk."""

    disk: Name
    slot: int
    """The block of the file that holds the header."""
    region: Region


class OpenedDisk(Frozen):
    name: Name
    size: int
    """Bytes."""
    based: bool
    """What the layers do not hold is in the base; else it reads as zeroes."""


class Opened(Frozen):
    token: str
    number: int
    """The point."""
    taken: datetime
    disks: tuple[OpenedDisk, ...] = ()
    layers: tuple[OpenLayer, ...] = ()
    end: int = 0
    """The journal's end when it was opened."""


def read_opened(folder: Path) -> dict[str, Opened]:
    """All in a folder. One that cannot be read was never finished, or nobody can use it: it is left out."""
    found = (read_one(path) for path in folder.iterdir())
    return {each.token: each for each in found if each is not None}


def read_one(path: Path) -> Opened | None:
    try:
        found = Opened.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.token == path.name else None
