"""Room kept free for records: a file of the state folder that is given up when the disk runs full.

Undoing half-done work writes records, and must succeed above all when space has run out. Whoever
cannot write gives the reserve up and writes again; housekeeping makes it anew once there is room.
"""

import os
from pathlib import Path

import structlog

from holdfast.host.space import free_space
from holdfast.spec.units import MIB

log = structlog.get_logger(__name__)

RESERVED = 16 * MIB
_SPARE = 4
"""It is made where so many times its size is free: a nearly full disk is left to its users."""


class SpaceReserve:
    """Owner of one file; safe to call from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self) -> None:
        """Make the file where it is missing or not whole, and there is room; nothing happens otherwise."""
        if self._is_whole() or free_space(self._path.parent)[0] < _SPARE * RESERVED:
            return
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVED)
        except OSError:
            self._path.unlink(missing_ok=True)
        finally:
            os.close(fd)

    def _is_whole(self) -> bool:
        """Whoever is killed while making it leaves an empty one, or one that is too short."""
        try:
            return self._path.lstat().st_size == RESERVED
        except FileNotFoundError:
            return False

    def give_up(self) -> bool:
        """Give the room back. False: there was none left to give."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        log.warning("the disk is full; the room reserved for records is given up", file=str(self._path))
        return True
