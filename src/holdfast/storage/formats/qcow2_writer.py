"""Writes a qcow2 volume that stands alone, front to back, in bounded memory (QEMU, docs/interop/qcow2.txt).

    header │ L1 table │ data clusters and L2 tables as they come │ refcounts │

Clusters of 128 KiB with subclusters of 4 KiB (`extended_l2`), as qemu-img makes our volumes. Until
`finish` writes the header the file is no disk. `mark` makes the tables agree with the data so that a
writer of a later process can go on from there: whatever lies at or beyond the mark is forgotten then.
Data goes past the page cache where the file system lets it: that is several times as fast as writing it
back, and leaves the cache to others.
"""

import mmap
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from holdfast.spec.units import MIB, format_size
from holdfast.storage.formats.refusals import DiskHoldsMoreThanPlanned

CLUSTER = 128 * 1024
SUBCLUSTER = CLUSTER // 32

_EXTENDED_L2 = 1 << 4
_COPIED = 1 << 63
_ENTRY = struct.Struct(">QQ")
_PER_TABLE = CLUSTER // _ENTRY.size
_SPAN = _PER_TABLE * CLUSTER
"""Bytes of the disk that one L2 table describes: 1 GiB."""
_KEPT_TABLES = 64
"""L2 tables in memory: 8 MiB, and 64 GiB of a disk that is written anyhow."""
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQIIQ")
_PER_REFCOUNTS = CLUSTER // 2
_BUFFER = 4 * MIB
"""Bytes that each thread writes at once."""


class Qcow2Writer:
    """The writer of one open, empty file. `write` may be called from several threads at once."""

    def __init__(self, fd: int, size: int, largest: int, direct: int | None = None) -> None:
        """`size`: bytes that the guest will see. `largest`: bytes that the file may have.

        `direct`: another descriptor of the file, opened with O_DIRECT.
        """
        self._fd = fd
        self._data = fd if direct is None else direct
        self._buffers = threading.local()
        self._size = size
        self._largest = largest
        self._lock = threading.Lock()
        self._l1 = [0] * -(-size // _SPAN)
        self._end = 1 + -(-len(self._l1) * 8 // CLUSTER)
        """The next cluster that nothing lies in."""
        self._tables: OrderedDict[int, bytearray] = OrderedDict()
        self._changed: set[int] = set()

    def write(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Put data at places of the disk, each a multiple of 4 KiB; the last may end anywhere.

        Raises:
            DiskHoldsMoreThanPlanned: the file would become larger than `largest`.
            OSError: it cannot be written.
        """
        with self._lock:
            placed = [part for offset, data in pieces for part in self._place(offset, data)]
        buffer: mmap.mmap | None = getattr(self._buffers, "mine", None)
        if buffer is None:
            buffer = self._buffers.mine = mmap.mmap(-1, _BUFFER)  # as aligned as O_DIRECT wants it
        for length, start in _gathered(placed, buffer):
            _write_all(self._data, buffer, length, start)

    def mark(self) -> int:
        """Write the tables out, while no `write` is under way. Returns where the file ends, in bytes.

        What was written before is durable once the caller has synced the file.
        """
        with self._lock:
            for index in sorted(self._changed):
                self._store(index)
            os.pwrite(self._fd, struct.pack(f">{len(self._l1)}Q", *self._l1), CLUSTER)
            return self._end * CLUSTER

    def go_on(self, end: int) -> None:
        """Take over what another writer of the same disk has left, up to a mark that is durable.

        Args:
            end: what that `mark` returned.

        Raises:
            OSError, ValueError: the file is not what was left.
        """
        if end % CLUSTER or not self._end * CLUSTER <= end <= max(self._largest, self._end * CLUSTER):
            raise ValueError(f"a mark at byte {end}")
        self._end = end // CLUSTER
        raw = os.pread(self._fd, 8 * len(self._l1), CLUSTER)
        if len(raw) < 8 * len(self._l1):
            raise ValueError("no L1 table")
        # What a later mark or an eviction wrote is of clusters that are given out anew.
        self._l1 = [each if each & ~_COPIED < end else 0 for each in struct.unpack(f">{len(self._l1)}Q", raw)]
        os.ftruncate(self._fd, end)
        for index, entry in enumerate(self._l1):
            if not entry:
                continue
            table = self._read_table(entry)
            for place in range(0, CLUSTER, _ENTRY.size):
                if int.from_bytes(table[place : place + 8], "big") & ~_COPIED >= end:
                    table[place : place + _ENTRY.size] = bytes(_ENTRY.size)
            self._keep(index, table)
            self._changed.add(index)

    def finish(self) -> None:
        """Write all tables and the header: from here on the file is a disk. Not yet synced."""
        self.mark()
        # Blocks of refcounts count themselves, and the one cluster of their table.
        blocks = 1
        while blocks * _PER_REFCOUNTS < self._end + 1 + blocks:
            blocks += 1
        table_at, total = self._end, self._end + 1 + blocks
        self._require(total)
        first = table_at + 1
        places = struct.pack(f">{blocks}Q", *((first + each) * CLUSTER for each in range(blocks)))
        os.pwrite(self._fd, places, table_at * CLUSTER)
        for each in range(blocks):
            used = min(_PER_REFCOUNTS, total - each * _PER_REFCOUNTS)
            os.pwrite(self._fd, b"\0\1" * used, (first + each) * CLUSTER)
        os.ftruncate(self._fd, total * CLUSTER)
        os.pwrite(self._fd, self._header(table_at), 0)

    def _header(self, refcounts: int) -> bytes:
        return _HEADER.pack(
            b"QFI\xfb",
            3,
            0,
            0,
            CLUSTER.bit_length() - 1,
            self._size,
            0,
            len(self._l1),
            CLUSTER,
            refcounts * CLUSTER,
            1,
            0,
            0,
            _EXTENDED_L2,
            0,
            0,
            4,
            _HEADER.size,
            0,
        )

    def _place(self, offset: int, data: bytes) -> Iterable[tuple[int, memoryview]]:
        """Where in the file the parts of one piece go; the tables know of them afterwards."""
        if offset % SUBCLUSTER or not 0 <= offset <= offset + len(data) <= self._size:
            raise ValueError(f"{len(data)} bytes at byte {offset} of a disk of {self._size}")
        rest = memoryview(data)
        while rest:
            within = offset % CLUSTER
            part = rest[: CLUSTER - within]
            yield self._cluster(offset, within, len(part)) + within, part
            rest, offset = rest[len(part) :], offset + len(part)

    def _cluster(self, offset: int, within: int, length: int) -> int:
        index, rest = divmod(offset, _SPAN)
        table = self._table(index)
        at = rest // CLUSTER * _ENTRY.size
        entry, allocated = _ENTRY.unpack_from(table, at)
        if not entry:
            entry = _COPIED | self._allocate()
        first, end = within // SUBCLUSTER, -(-(within + length) // SUBCLUSTER)
        _ENTRY.pack_into(table, at, entry, allocated | (1 << end) - (1 << first))
        self._changed.add(index)
        return int(entry & ~_COPIED)

    def _allocate(self) -> int:
        self._require(self._end + 1)
        self._end += 1
        return (self._end - 1) * CLUSTER

    def _require(self, clusters: int) -> None:
        if clusters * CLUSTER > self._largest:
            raise DiskHoldsMoreThanPlanned(
                f"the disk holds more than the {format_size(self._largest)} that were planned for it",
                value=self._largest,
                cure="Its own description says less than it holds: get the file again from its source.",
            )

    def _table(self, index: int) -> bytearray:
        table = self._tables.get(index)
        if table is not None:
            self._tables.move_to_end(index)
            return table
        entry = self._l1[index]
        if entry:
            table = self._read_table(entry)
        else:
            self._l1[index] = _COPIED | self._allocate()
            table = bytearray(CLUSTER)
        self._keep(index, table)
        return table

    def _keep(self, index: int, table: bytearray) -> None:
        if len(self._tables) >= _KEPT_TABLES:
            oldest = next(iter(self._tables))
            if oldest in self._changed:
                self._store(oldest)
            del self._tables[oldest]
        self._tables[index] = table

    def _read_table(self, entry: int) -> bytearray:
        table = os.pread(self._fd, CLUSTER, entry & ~_COPIED)
        if len(table) < CLUSTER:
            raise ValueError(f"no table at byte {entry & ~_COPIED}")
        return bytearray(table)

    def _store(self, index: int) -> None:
        os.pwrite(self._fd, self._tables[index], self._l1[index] & ~_COPIED)
        self._changed.discard(index)


def _gathered(placed: Iterable[tuple[int, memoryview]], buffer: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Put what lies side by side in the file together into `buffer`: how many bytes, and where they go."""
    start = filled = 0
    for at, part in placed:
        if filled and (at != start + filled or filled + len(part) > len(buffer)):
            yield filled, start
            filled = 0
        if not filled:
            start = at
        buffer[filled : filled + len(part)] = part
        filled += len(part)
        if filled % SUBCLUSTER:  # where the disk ends
            padding = -filled % SUBCLUSTER
            buffer[filled : filled + padding] = bytes(padding)
            filled += padding
    if filled:
        yield filled, start


def _write_all(fd: int, buffer: mmap.mmap, length: int, start: int) -> None:
    """pwrite(2) may write less than it was given, above all when a disk is nearly full."""
    written = 0
    with memoryview(buffer) as view:
        while written < length:
            written += os.pwrite(fd, view[written:length], start + written)
