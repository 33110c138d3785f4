"""Reads a streamOptimized VMDK front to back, wherever in a file it lies (VMware, Virtual Disk Format 5.0).

    header │ descriptor │ grain grain ... table │ grain ... table │ directory │ footer │ end

Each grain is behind a marker that says where on the disk it belongs, and is listed in a grain table.
The two must agree for every grain, so that none overlaps another and none is missed; of one that was cut
off or put elsewhere nothing is taken. Writers put the tables before, between or behind the grains.
"""

import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from isal import igzip_lib

from holdfast.spec.units import MIB
from holdfast.storage.formats import vmdk
from holdfast.storage.formats.reading import SECTOR, Reader, damaged
from holdfast.storage.formats.refusals import ImageDamaged, ImageFeatureUnknown

_COMPRESSED, _MARKERS = 1 << 16, 1 << 17
_COMPRESSION_AT, _DEFLATE = 77, 1
_MARKER = struct.Struct("<QI")
_KIND = struct.Struct("<I")
_SHORTEST_MARKER = _MARKER.size + _KIND.size
_END_OF_STREAM = 0
_LARGEST_GRAIN = 2 * MIB
_MOST_TABLES = 1 << 22
"""64 TiB in tables of 512 grains of 32 KiB."""
_KEPT_TABLES = 4096
_PIECE = 2 * MIB
"""Bytes read at once."""
_MOST_OUT = 4 * MIB
"""Bytes that one batch becomes at most, whatever it was compressed to."""

Heard = Callable[[memoryview], None]
"""Told every byte of the VMDK once, in order."""


@dataclass(frozen=True)
class Layout:
    """What the header and the tables say, checked."""

    capacity: int
    """Bytes of the disk."""
    grain: int
    """Bytes."""
    per_table: int
    directory: "array[int]"
    """The sector of each grain table; 0 where no grain of it has data."""
    start: int
    """Where the first marker is, in bytes."""
    listed: int
    """Grains with data, by all tables."""


@dataclass(frozen=True)
class Grain:
    offset: int
    """Bytes from the beginning of the disk."""
    length: int
    """Bytes of the disk that it covers: fewer than others where the disk ends in it."""
    data: memoryview
    """Compressed: zlib, RFC 1950."""


@dataclass(frozen=True)
class Batch:
    """Grains in the order of the file, and where to go on after them."""

    grains: tuple[Grain, ...]
    position: int
    """Where in the VMDK the next marker is."""
    seen: int
    """Grains so far, these counted."""


def is_stream(reader: Reader) -> bool:
    """Whether it is a VMDK of compressed grains with markers, which is what this module reads."""
    head = reader.peek(0, SECTOR)
    if len(head) < SECTOR or not head.startswith(vmdk.MAGIC):
        return False
    (compression,) = struct.unpack_from("<H", head, _COMPRESSION_AT)
    flags = vmdk.HEADER.unpack_from(head)[2]
    return bool(flags & _MARKERS and flags & _COMPRESSED and compression == _DEFLATE)


def layout(reader: Reader) -> Layout:
    """Check the header and all tables; takes some milliseconds for each 100 GiB of disk.

    Raises:
        ImageTruncated, ImageDamaged, ImageSizeAbsurd: they promise what is not there.
        ImageHasBackingFile, ImageNamesOtherFiles: it is only a part; nothing that it names is opened.
        ImageFeatureUnknown: it is a VMDK of another kind.
    """
    size = vmdk.inspect(reader).virtual_size
    if not is_stream(reader):
        raise _unknown("it has no compressed grains with markers")
    first = vmdk.HEADER.unpack(reader.read(0, vmdk.HEADER.size, "the VMDK header"))
    last = vmdk.read_header(reader)
    if first[4] != last[4] or first[3] not in (0, last[3]):
        raise damaged("VMDK", "its header and its footer differ")
    grain, per_table, directory = last[4] * SECTOR, last[7], last[9]
    if grain > _LARGEST_GRAIN:
        raise _unknown(f"its grains have {grain} bytes")
    count = -(-size // (per_table * grain))
    if count > _MOST_TABLES:
        raise damaged("VMDK", f"{count} grain tables")
    tables = _integers(reader, directory * SECTOR, count, "the grain directory")
    made = Layout(size, grain, per_table, tables, first[10] * SECTOR, 0)
    return replace(made, listed=_listed(reader, made))


def _listed(reader: Reader, made: Layout) -> int:
    """How many grains the tables list; no two tables share a byte, so the file's size bounds the work."""
    places = sorted(each for each in made.directory if each)
    length = -(-made.per_table * 4 // SECTOR)
    if any(after - before < length for before, after in pairwise(places)):
        raise damaged("VMDK", "two grain tables lie in one place")
    found = 0
    for sector in places:
        found += _with_data(_integers(reader, sector * SECTOR, made.per_table, "a grain table"))
    if made.directory[-1]:
        # What the last table has room for beyond the end of the disk says nothing.
        table = _integers(reader, made.directory[-1] * SECTOR, made.per_table, "a grain table")
        found -= _with_data(
            table[-(-made.capacity // made.grain) - (len(made.directory) - 1) * made.per_table :]
        )
    return found


def _with_data(table: "array[int]") -> int:
    """Entries of a grain table but for 0, which is no grain, and 1, which is one of zeros."""
    return len(table) - table.count(0) - table.count(1)


def _integers(reader: Reader, offset: int, count: int, what: str) -> "array[int]":
    found = array("I", reader.read(offset, count * 4, what))
    if sys.byteorder == "big":
        found.byteswap()
    return found


class GrainStream:
    """The grains of one VMDK in the order of the file, in bounded pieces."""

    def __init__(self, reader: Reader, found: Layout, heard: Heard | None = None) -> None:
        self._reader = reader
        self._layout = found
        self._heard = heard
        self._tables: dict[int, array[int]] = {}
        # Deflate's own worst case is far less (RFC 1951, 3.2.4).
        self._longest = 2 * found.grain

    def batches(self, position: int = 0, seen: int = 0) -> Iterator[Batch]:
        """All of them, or those after an earlier batch, whose `position` and `seen` these are.

        Every byte from `position` on is told to `heard`, those before and behind the markers too.

        Raises:
            ImageTruncated, ImageDamaged: a grain is not where the tables say, or one of them is missing.
        """
        at, size = position, self._reader.size
        if at < self._layout.start:
            at = self._hear(at, self._layout.start)
        rest, ended = memoryview(b""), False
        while not ended:
            view = self._more(at, rest)
            batches, used, ended = self._split(view, at)
            for grains, end in batches:
                seen += len(grains)
                yield Batch(grains, at + end, seen)
            rest = view[used:]
            self._hear(at + len(view), at + used)
            at += used
        self._hear(at + len(rest), size)
        if seen != self._layout.listed:
            raise damaged("VMDK", f"its tables list {self._layout.listed} grains, and {seen} are there")

    def _split(self, view: memoryview, at: int) -> tuple[list[tuple[tuple[Grain, ...], int]], int, bool]:
        """Batches of the grains that are whole in `view`, which is at byte `at`, and where each ends;
        how much of it is done with (more than there is where the rest is to be skipped); is it the end."""
        batches: list[tuple[tuple[Grain, ...], int]] = []
        grains: list[Grain] = []
        most = max(1, _MOST_OUT // self._layout.grain)
        size, used, ended = self._reader.size, 0, False
        while not ended and used + _SHORTEST_MARKER <= len(view):
            value, length = _MARKER.unpack_from(view, used)
            if length:
                end = used + _MARKER.size + length
                if length > self._longest:
                    raise damaged("VMDK", f"a grain of {length} bytes at byte {at + used}")
                if end > len(view):
                    break
                grains.append(self._grain(value, at + used, view[used + _MARKER.size : end]))
                used = min(-(-end // SECTOR) * SECTOR, size - at)
            else:
                (kind,) = _KIND.unpack_from(view, used + _MARKER.size)
                self._reader.require(at + used, (1 + value) * SECTOR, "the stream")
                used += (1 + value) * SECTOR
                ended = kind == _END_OF_STREAM
            if len(grains) >= most:
                batches.append((tuple(grains), used))
                grains = []
        if grains:
            batches.append((tuple(grains), used))
        if not ended and at + len(view) >= size:
            if used < len(view):
                self._reader.require(size, 1, "a grain")
            ended = at + used >= size
        return batches, used, ended

    def _grain(self, sector: int, at: int, data: memoryview) -> Grain:
        """The grain whose marker is at byte `at`, if the tables list it there."""
        offset, found = sector * SECTOR, self._layout
        index, rest = divmod(offset, found.grain)
        table, place = divmod(index, found.per_table)
        if rest or offset >= found.capacity or self._table(table)[place] * SECTOR != at:
            raise damaged("VMDK", f"a grain at byte {at} for sector {sector} that its tables list elsewhere")
        return Grain(offset, min(found.grain, found.capacity - offset), data)

    def _table(self, index: int) -> "array[int]":
        table = self._tables.get(index)
        if table is None:
            sector = self._layout.directory[index]
            if not sector:
                return array("I", bytes(4 * self._layout.per_table))
            table = _integers(self._reader, sector * SECTOR, self._layout.per_table, "a grain table")
            if len(self._tables) >= _KEPT_TABLES:
                self._tables.clear()
            self._tables[index] = table
        return table

    def _more(self, at: int, rest: memoryview) -> memoryview:
        """`rest`, which begins at `at`, and what comes after it."""
        count = min(_PIECE, self._reader.size - at - len(rest))
        buffer = memoryview(bytearray(len(rest) + count))
        buffer[: len(rest)] = rest
        fresh = buffer[len(rest) :]
        self._reader.read_into(at + len(rest), fresh, "a grain")
        if self._heard and count:
            self._heard(fresh)
        return buffer

    def _hear(self, start: int, end: int) -> int:
        """Read bytes that hold no grain. Returns `end`."""
        while self._heard and start < end:
            count = min(_PIECE, end - start)
            buffer = memoryview(bytearray(count))
            self._reader.read_into(start, buffer, "the stream")
            self._heard(buffer)
            start += count
        return end


def inflate(grain: Grain, size: int) -> bytes:
    """What a grain of at most `size` bytes holds. Called from several threads; lets others run.

    Raises:
        ImageDamaged: it does not hold what it should, or more.
    """
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)
    try:
        data: bytes = inflater.decompress(grain.data, size + 1)
    except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub says instance for class
        raise _not_whole(grain, "cannot be inflated") from error
    if not grain.length <= len(data) <= size or not inflater.eof:
        raise _not_whole(grain, f"does not hold {grain.length} bytes")
    return data[: grain.length] if len(data) > grain.length else data


def _not_whole(grain: Grain, what: str) -> ImageDamaged:
    return damaged("VMDK", f"the grain of byte {grain.offset} of the disk {what}")


def _unknown(what: str) -> ImageFeatureUnknown:
    return ImageFeatureUnknown(
        f"the VMDK file is of another kind than streamOptimized: {what}",
        value=what,
        cure="Convert it with `qemu-img convert -O vmdk -o subformat=streamOptimized`.",
    )
