"""What daemon start does with half-made files: those of unfinished operations stay, the rest goes."""

from collections.abc import Collection
from pathlib import Path

from holdfast.host.files import remove_tree

_PREFIX = "operation-"


def operation_folder(scratch: Path, operation_id: str) -> Path:
    """Where an operation keeps what it would need after a restart."""
    return scratch / f"{_PREFIX}{operation_id}"


def clean(scratch: Path, unfinished: Collection[str], needed: Collection[Path] = ()) -> None:
    """Empty `scratch`, but for the folders of the operations `unfinished` and the files `needed`.

    Blocks; call in a thread.
    """
    kept = {f"{_PREFIX}{operation_id}" for operation_id in unfinished}
    for entry in scratch.iterdir():
        if entry.name in kept or entry in needed:
            continue
        if any(entry in path.parents for path in needed):
            clean(entry, (), needed)
        elif entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            entry.unlink(missing_ok=True)
