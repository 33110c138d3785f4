"""Whether a directory may be a pool's: real, safe from others, passable, and nobody else's."""

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from holdfast.host.files import sync_folder, write_atomic
from holdfast.spec.errors import Conflict, InvalidInput

_MARK = ".holdfast-pool"
_LARGEST_MARK = 4096
_IGNORED = {"lost+found"}


class PoolPathUnusable(InvalidInput):
    id = "pool-path-unusable"


class PoolPathNotEmpty(Conflict):
    id = "pool-path-not-empty"


class PoolPathTaken(Conflict):
    id = "pool-path-taken"


@dataclass(frozen=True)
class RootMark:
    """What says in a pool's root whose it is."""

    pool: str
    """Id of the pool."""
    state: str
    """Mark of the daemon's state folder."""

    def write(self, root: Path) -> None:
        """Raises PoolPathUnusable where the file system reads and writes by its cache only."""
        write_atomic(root / _MARK, json.dumps(asdict(self)).encode(), 0o644)
        try:
            os.close(os.open(root / _MARK, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
        except OSError as error:
            remove_mark(root)
            raise _unusable(
                root, "its file system cannot write past the cache (O_DIRECT)", "Choose another file system."
            ) from error


def read_mark(root: Path) -> RootMark | None:
    """Raises OSError where the root cannot be read."""
    try:
        fd = os.open(root / _MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        try:
            found = json.loads(file.read(_LARGEST_MARK))
            return RootMark(str(found["pool"]), str(found["state"]))
        except (ValueError, KeyError, TypeError):
            return RootMark("", "")


def remove_mark(root: Path) -> None:
    (root / _MARK).unlink(missing_ok=True)
    sync_folder(root)


def check_root(root: Path, state: Path, own_mark: str) -> None:
    """Pass where a pool may be made at `root`.

    Args:
        state: the daemon's own folder.
        own_mark: what a mark of this daemon says; that of a pool without a record is left by a crash.

    Raises:
        PoolPathUnusable: it is no real directory, or somebody else could put another in its place.
        PoolPathNotEmpty: something else lies in it.
        PoolPathTaken: another pool, perhaps of another daemon, is in it.
    """
    try:
        real = root.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise _unusable(
            root, "there is no such directory", "Make it, or mount what it stands for."
        ) from error
    if real != root:
        raise _unusable(root, f"it leads through a symbolic link to {real}", f"Name {real} itself.")
    if not root.is_dir():
        raise _unusable(root, "it is not a directory", "Name a directory.")
    own = state.resolve()
    if own == root or own in root.parents or root in own.parents:
        raise _unusable(root, f"the daemon's own state is in {own}", "Choose a directory apart from it.")
    for folder in (root, *root.parents):
        _check_owner(root, folder)
    if not os.access(root, os.W_OK | os.X_OK) or os.statvfs(root).f_flag & os.ST_RDONLY:
        raise _unusable(root, "nothing can be written to it", "Make it writable for the daemon.")
    check_entries(root, own_mark)


def check_entries(root: Path, own_mark: str) -> None:
    """The part of `check_root` that looks at what lies in it. Raises PoolPathNotEmpty, PoolPathTaken."""
    entries = {entry.name for entry in root.iterdir()} - _IGNORED
    mark = read_mark(root)
    if mark is not None and mark.state != own_mark:
        raise PoolPathTaken(
            f"{root} already belongs to a pool",
            value=str(root),
            cure=f"Delete that pool first; if no daemon knows it any more, remove {root / _MARK}.",
        )
    if entries - {_MARK}:
        raise PoolPathNotEmpty(
            f"{root} is not empty: {', '.join(sorted(entries)[:3])}",
            value=str(root),
            cure="Choose an empty directory.",
        )


def require_apart(root: Path, others: Iterable[tuple[str, Path]]) -> None:
    """No pool in another. Raises PoolPathTaken."""
    for name, path in others:
        if path == root or path in root.parents or root in path.parents:
            raise PoolPathTaken(
                f"{root} and the pool {name!r} at {path} would lie in each other",
                value=str(root),
                cure="Choose a directory apart from it.",
            )


def _check_owner(root: Path, folder: Path) -> None:
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise _unusable(root, f"{folder} belongs to another user", f"Run: chown root {folder}")
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others_write and (folder == root or not found.st_mode & stat.S_ISVTX):
        raise _unusable(root, f"others may write to {folder}", f"Run: chmod go-w {folder}")
    if os.geteuid() == 0 and not found.st_mode & stat.S_IXOTH:
        raise _unusable(
            root, f"VMs run as users of their own, which {folder} lets not pass", f"Run: chmod o+x {folder}"
        )


def _unusable(root: Path, why: str, cure: str) -> PoolPathUnusable:
    return PoolPathUnusable(f"{root} cannot be a pool: {why}", value=str(root), cure=cure)
