"""The journal: blocks of 4 KiB in the order that they arrived, in files that only grow and are holed.

A block is never written again; once nothing needs it, its place becomes a hole. A new file begins where one
has reached its limit (file systems have one too), and a file is removed when no index names it any more.
The first blocks of each file are kept for headers: see `points`.
"""

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from holdfast.replication.store.files import Data, Files
from holdfast.replication.store.index import BLOCK, FILE_SHIFT, PLACE_MASK, Blocks, runs
from holdfast.spec.units import MIB, TIB

SLOTS = 256
"""Blocks at the beginning of each file that data never lies in."""
_MUCH = 1 * MIB
"""Bytes that a disk begins to write at once."""
_WRITTEN = 16 * MIB
"""Bytes behind which a disk has most likely written by now."""
LARGEST = 4 * TIB
"""Bytes from which on a new file is begun; ext4 ends at 16 TiB."""


def file_of(folder: Path, place: int) -> Path:
    """The file that a place is in."""
    return folder / f"{place >> FILE_SHIFT:06x}"


class Journal:
    """Of one replica. Writing goes on beside freeing."""

    def __init__(self, folder: Path, files: Files, largest: int = LARGEST) -> None:
        self._folder = folder
        self._files = files
        self._most = max(largest // BLOCK, SLOTS + 1)
        self._end = (1 << FILE_SHIFT) + SLOTS
        self._unsynced: dict[Path, tuple[int, int]] = {}
        """Where in each file it was written to: the first byte, and the one behind the last."""
        self._lock = threading.Lock()

    @property
    def end(self) -> int:
        """The place that the next block goes to, or would if its file had room."""
        return self._end

    def path(self, place: int) -> Path:
        return file_of(self._folder, place)

    def settle(self, end: int, needed: Iterable[int]) -> None:
        """After a start: forget what lies at or beyond `end`, and files that are not needed."""
        self._end = max(end, (1 << FILE_SHIFT) + SLOTS)
        current = self.path(self._end)
        if current.exists() and current.stat().st_size > (self._end & PLACE_MASK) * BLOCK:
            self._files.truncate(current, (self._end & PLACE_MASK) * BLOCK)
        self.keep_only(needed)

    def keep_only(self, needed: Iterable[int]) -> None:
        """Remove files other than these and the one that is being written."""
        kept = {self.path(number << FILE_SHIFT) for number in needed} | {self.path(self._end)}
        for path in sorted(self._folder.iterdir()):
            if path not in kept:
                self._files.remove(path)

    def allocate(self, blocks: int) -> int:
        """The place of the first of so many blocks, which follow each other in one file."""
        with self._lock:
            if (self._end & PLACE_MASK) + blocks > self._most and self._end & PLACE_MASK > SLOTS:
                self._end = (((self._end >> FILE_SHIFT) + 1) << FILE_SHIFT) + SLOTS
            place = self._end
            self._end += blocks
            return place

    def allocate_in(self, number: int, blocks: int) -> int:
        """As `allocate`, at the end of the file of this number, whatever its size."""
        with self._lock:
            if number == self._end >> FILE_SHIFT:
                place, self._end = self._end, self._end + blocks
                return place
            size = self.path(number << FILE_SHIFT).stat().st_size
            return (number << FILE_SHIFT) + -(-size // BLOCK)

    def write(self, place: int, data: Data) -> None:
        """Not durable before `sync`."""
        path, at = self.path(place), (place & PLACE_MASK) * BLOCK
        with self._lock:
            begin, end = self._unsynced.get(path, (at, at))
            self._unsynced[path] = min(begin, at), max(end, at + len(data))
        self._files.write(path, at, data)
        if len(data) >= _MUCH:
            self._files.begin_sync(path, at, len(data))
            if (end := at - _WRITTEN) > 0:
                self._files.let_go(path, max(0, end - _WRITTEN), min(end, _WRITTEN))

    def sync(self) -> None:
        """Make durable what was written before."""
        with self._lock:
            paths, self._unsynced = self._unsynced, {}
        for path, (begin, end) in paths.items():
            self._files.sync(path)
            self._files.let_go(path, begin, end - begin)
        if paths:
            self._files.sync_folder(self._folder)

    def read(self, place: int, blocks: int) -> bytes:
        """Fewer bytes than asked for where the file is not there or too short."""
        return self._files.read(self.path(place), (place & PLACE_MASK) * BLOCK, blocks * BLOCK)

    def free(self, places: Blocks) -> None:
        """Give the room of blocks back; in any order, each once or more often."""
        for place, count in runs(np.unique(places)):
            if self.path(place).exists():
                self._files.discard(self.path(place), (place & PLACE_MASK) * BLOCK, count * BLOCK)
