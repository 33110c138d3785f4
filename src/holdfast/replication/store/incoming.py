"""A cycle that is arriving: into the journal, or, as the first of all, into the base itself.

Nothing of it counts before `commit`, which makes the data durable, then the index, then the index's name.
"""

import contextlib
import errno
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from holdfast.replication.store.errors import CycleRefused, DiskTooLarge, ReplicaFull
from holdfast.replication.store.files import Data
from holdfast.replication.store.holdings import NEW, Holdings
from holdfast.replication.store.index import (
    BLOCK,
    ENTRY,
    RANGE,
    Changes,
    Entries,
    Head,
    Merging,
    Ranges,
    covered,
    newest,
    united,
)
from holdfast.replication.store.qcow2_tables import LARGEST_DISK
from holdfast.replication.store.record import Cycle, Point, points_of
from holdfast.replication.store.view import block_sums
from holdfast.spec.names import check_name
from holdfast.spec.units import MIB, format_size
from holdfast.storage.qemu_img import no_room

LARGEST_ATTACHMENT = 64 * MIB
MOST_ATTACHMENTS = 32
MOST_DISKS = 256
_GATHERED = MIB
"""Bytes that are written at once."""
_SPILLED = 1 << 20
"""Blocks whose places are in memory: 20 MiB."""
_MOST_RANGES = 1 << 24
"""Of one disk in one cycle: 256 MiB of memory."""


class Incoming(Protocol):
    """Used by one thread at a time. Offsets are multiples of 4 KiB; so are lengths, but at a disk's end.

    All raise CycleRefused, ReplicaFull, NoSpace and OSError; the cycle is then to be abandoned.
    """

    def write(self, disk: str, offset: int, data: Data) -> None:
        """Of a block that comes twice the later one counts."""

    def zero(self, disk: str, offset: int, length: int) -> None:
        """It reads as zeroes. Where a block is both written and zeroed, `commit` refuses the cycle."""

    def resize(self, disk: str, size: int) -> None:
        """Another size than the cycle began with. Where it shrinks, the block at the end is to be sent."""

    def attach(self, name: str, data: bytes) -> None:
        """What belongs to the VM beside disks. One that does not come is as the point before had it."""

    def commit(self) -> Point:
        """All of it is durable when this returns."""

    def abandon(self) -> None:
        """As if it had never begun; also after a `commit` that failed. After one that did not: nothing."""


class _Arriving:
    """What both kinds share: what is allowed, and what is known of the cycle."""

    def __init__(self, holdings: Holdings, cycle: Cycle, room: int | None, ended: Callable[[], None]) -> None:
        self._holdings = holdings
        self._cycle = cycle
        self._room = room
        self._ended = ended
        self._over = False
        self._sizes: dict[str, int] = {}
        self._attached: dict[str, bytes] = {}
        self._received = 0
        if len(cycle.disks) > MOST_DISKS:
            raise _refused(f"a cycle of {len(cycle.disks)} disks", len(cycle.disks))
        for disk, size in cycle.disks.items():
            self._sizes[check_name(disk)] = _checked_size(disk, size)

    def resize(self, disk: str, size: int) -> None:
        self._size(disk)
        self._sizes[disk] = _checked_size(disk, size)

    def attach(self, name: str, data: bytes) -> None:
        if len(data) > LARGEST_ATTACHMENT or len(self._attached) >= MOST_ATTACHMENTS:
            raise _refused(f"too large or too many attachments, at {name[:63]!r}", len(data))
        self._take(len(data))
        self._attached[check_name(name)] = bytes(data)

    def _end(self) -> None:
        """Once."""
        if not self._over:
            self._over = True
            self._ended()

    def _size(self, disk: str) -> int:
        size = self._sizes.get(disk)
        if size is None:
            raise _refused(f"a disk {disk[:63]!r} that the cycle did not begin with", disk[:63])
        return size

    def _check(self, disk: str, offset: int, length: int) -> None:
        size = self._size(disk)
        whole = length % BLOCK == 0 or offset + length == size
        if offset < 0 or length <= 0 or offset % BLOCK or not whole or offset + length > size:
            raise _refused(f"{length} bytes at byte {offset} of disk {disk}, which has {size}", offset)

    def _take(self, length: int) -> None:
        self._received += length
        if self._room is not None and self._received > self._room:
            raise ReplicaFull(
                f"the replica has reached the room that it is allowed ({format_size(self._room)} were left)",
                value=self._room,
                cure="Allow it more room on the receiving host, or keep fewer points.",
            )

    def _head(self, end: int) -> Head:
        heads, number = self._holdings.heads, self._holdings.next_number
        whole = self._cycle.compared or not self._cycle.base
        return Head(
            first=number,
            last=number,
            cycle=self._cycle.number,
            taken=self._cycle.taken,
            disks=self._sizes,
            compared=number if whole else (heads[-1].compared if heads else 0),
            received=self._received,
            consistency=self._cycle.consistency,
            end=end,
        )


class JournalIncoming(_Arriving):
    """Into the journal."""

    def __init__(self, holdings: Holdings, cycle: Cycle, room: int | None, ended: Callable[[], None]) -> None:
        super().__init__(holdings, cycle, room, ended)
        self._before = dict(holdings.heads[-1].disks)
        self._gathered = bytearray()
        self._waiting: list[tuple[str, int]] = []
        """Disks and numbers of blocks that are gathered, in their order."""
        self._blocks = {disk: array("Q") for disk in self._sizes}
        self._places = {disk: array("Q") for disk in self._sizes}
        self._sums = {disk: array("I") for disk in self._sizes}
        self._zeros = {disk: _Runs() for disk in self._sizes}
        self._parts: dict[str, list[Entries]] = {disk: [] for disk in self._sizes}
        self._scratch: list[Path] = []
        self._allocated: list[tuple[int, int]] = []
        self._name: Path | None = None
        """Of the index that is being written."""
        holdings.arriving_from = holdings.journal.end

    def write(self, disk: str, offset: int, data: Data) -> None:
        length = len(data)
        self._check(disk, offset, length)
        self._take(length)
        first, count = offset // BLOCK, -(-length // BLOCK)
        start = len(self._gathered)
        self._gathered += data
        self._gathered += bytes(count * BLOCK - length)
        with memoryview(self._gathered) as view, view[start:] as part:
            self._sums[disk].extend(block_sums(part))
        self._blocks[disk].extend(range(first, first + count))
        self._waiting.append((disk, count))
        if len(self._gathered) >= _GATHERED:
            self._flush()

    def zero(self, disk: str, offset: int, length: int) -> None:
        self._check(disk, offset, length)
        self._zeros[disk].add(offset, length)

    def commit(self) -> Point:
        holdings = self._holdings
        with _room(holdings.folder):
            self._flush()
            holdings.journal.sync()
            changes = {disk: Merging(self._changes(disk)) for disk in self._sizes}
            head = self._head(holdings.journal.end)
            self._name = holdings.index_path(head)
            index = holdings.write_index(head, changes, self._attached)
        self._name = None
        with holdings.lock:
            holdings.spans.append(index)
            point = points_of([index.head], holdings.damages)[0]
        self._close()
        return point

    def abandon(self) -> None:
        if self._over:
            return
        try:
            if self._name is not None:  # it may have got its name, though not durably
                self._holdings.files.remove(self._name)
                self._holdings.files.sync_folder(self._name.parent)
            for place, count in self._allocated:
                self._holdings.journal.free(np.arange(place, place + count, dtype=np.uint64))
        finally:
            self._close()

    def _close(self) -> None:
        self._allocated.clear()
        self._parts.clear()
        for path in self._scratch:
            self._holdings.files.remove(path)
        self._scratch.clear()
        self._holdings.arriving_from = None
        self._end()

    def _changes(self, disk: str) -> list[Changes]:
        """What came for a disk: zeroes first, since data counts over them; then the parts in their order."""
        size, before = self._sizes[disk], self._before.get(disk)
        self._spill(disk, force=True)
        zeroed, blocks = self._zeros[disk].united(), -(-size // BLOCK)
        for part in self._parts[disk]:
            if int(part["block"][-1]) >= blocks:
                raise _refused(f"data of disk {disk} beyond the end that it shrank to", size)
            if covered(part["block"], zeroed).any():
                raise _both(disk)
        more = np.zeros(0, RANGE)
        if (before is None or not self._cycle.base) and not self._cycle.compared:
            more = np.array([(0, blocks)], RANGE)  # whatever an earlier disk of this name has left
        elif before is not None and size < before:
            more = np.array([(blocks, -(-before // BLOCK) - blocks)], RANGE)
        zeros = united(np.concatenate((zeroed, more[more["count"] > 0])))
        return [Changes(zeros), *(Changes(entries=part) for part in self._parts[disk])]

    def _flush(self) -> None:
        if not self._gathered:
            return
        with _room(self._holdings.folder):
            count = len(self._gathered) // BLOCK
            place = self._holdings.journal.allocate(count)
            self._allocated.append((place, count))
            self._holdings.journal.write(place, self._gathered)
            self._gathered = bytearray()
            for disk, blocks in self._waiting:
                self._places[disk].extend(range(place, place + blocks))
                place += blocks
            for disk in {each for each, _ in self._waiting}:
                self._spill(disk)
            self._waiting.clear()

    def _spill(self, disk: str, force: bool = False) -> None:
        """Put what is known of a disk's blocks in order, and into a file where it is much."""
        count = len(self._places[disk])
        if not count or (count < _SPILLED and not force):
            return
        part = np.empty(count, ENTRY)
        part["block"], part["at"], part["crc"] = self._blocks[disk], self._places[disk], self._sums[disk]
        part, _ = newest(part)
        if count >= _SPILLED:
            path = self._holdings.folder / "index" / f"part-{len(self._scratch)}{NEW}"
            self._holdings.files.remove(path)
            self._holdings.files.write(path, 0, part.tobytes())
            self._scratch.append(path)
            part = np.memmap(path, ENTRY, "r")
        self._parts[disk].append(part)
        for each in (self._blocks, self._places):
            each[disk] = array("Q")
        self._sums[disk] = array("I")


class BaseIncoming(_Arriving):
    """The first cycle, straight into the base: there is no point yet that it could spoil."""

    def __init__(self, holdings: Holdings, cycle: Cycle, room: int | None, ended: Callable[[], None]) -> None:
        super().__init__(holdings, cycle, room, ended)
        self._written = {disk: _Runs() for disk in self._sizes}
        self._zeroed = {disk: _Runs() for disk in self._sizes}
        if not cycle.compared:  # a copy that was interrupted may have left what is not sent again
            for path in sorted((holdings.folder / "base").iterdir()):
                holdings.files.remove(path)

    def write(self, disk: str, offset: int, data: Data) -> None:
        self._check(disk, offset, len(data))
        self._take(len(data))
        self._written[disk].add(offset, len(data))
        with _room(self._holdings.folder):
            self._holdings.files.write(self._holdings.base_path(disk), offset, data)

    def zero(self, disk: str, offset: int, length: int) -> None:
        self._check(disk, offset, length)
        self._zeroed[disk].add(offset, length)
        self._holdings.files.discard(self._holdings.base_path(disk), offset, length)

    def commit(self) -> Point:
        holdings = self._holdings
        for disk in self._sizes:
            written, zeroed = self._written[disk].united(), self._zeroed[disk].united()
            together = united(np.concatenate((written, zeroed)))
            if together["count"].sum() < written["count"].sum() + zeroed["count"].sum():
                raise _both(disk)
        with _room(holdings.folder):
            for disk, size in self._sizes.items():
                holdings.files.truncate(holdings.base_path(disk), size)
                holdings.files.sync(holdings.base_path(disk))
            holdings.files.sync_folder(holdings.folder / "base")
            head = self._head(holdings.journal.end).model_copy(update={"first": 1})
            holdings.write_base(head, self._attached)
        self._end()
        return points_of([head], holdings.damages)[0]

    def abandon(self) -> None:
        """What came stays: a copy that goes on by comparing need not get it again."""
        self._end()


class _Runs:
    """Ranges of blocks, 16 bytes each."""

    def __init__(self) -> None:
        self._pairs = array("Q")

    def add(self, offset: int, length: int) -> None:
        """In bytes; what follows the one before is one with it."""
        pairs, first, count = self._pairs, offset // BLOCK, -(-length // BLOCK)
        if pairs and pairs[-2] + pairs[-1] == first:
            pairs[-1] += count
        elif len(pairs) < 2 * _MOST_RANGES:
            pairs.extend((first, count))
        else:
            raise _refused(f"more than {_MOST_RANGES} ranges of one disk in one cycle", _MOST_RANGES)

    def united(self) -> Ranges:
        return united(np.array(self._pairs, np.uint64).view(RANGE))


def _both(disk: str) -> CycleRefused:
    return _refused(f"blocks of disk {disk} both as data and as zeroes in one cycle", disk)


def _checked_size(disk: str, size: int) -> int:
    if size <= 0 or size % 512:
        raise _refused(f"a disk {disk} of {size} bytes, which is no number of sectors", size)
    if size > LARGEST_DISK:
        raise DiskTooLarge(
            f"disk {disk} has {format_size(size)}; a replica's disk has at most {format_size(LARGEST_DISK)}",
            value=size,
            cure="Exclude this disk from replication.",
        )
    return size


def _refused(what: str, value: object) -> CycleRefused:
    return CycleRefused(
        f"the source sent {what}", value=value, cure="See that both hosts run the same version of Holdfast."
    )


@contextlib.contextmanager
def _room(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_room(folder) from error
        raise
