"""Records of points that are open: what of the journal they keep, over restarts of the daemon too."""

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


class Opened(Frozen):
    token: str
    number: int
    """The point."""
    layers: tuple[OpenLayer, ...] = ()
    end: int = 0
    """The journal's end when it was opened."""


def read_opened(folder: Path) -> dict[str, Opened]:
    """All in a folder. One that cannot be read was never finished, or nobody can use it: it is left out."""
    found = {}
    for path in folder.iterdir():
        try:
            each = Opened.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        if each.token == path.name:
            found[each.token] = each
    return found
