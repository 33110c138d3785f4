"""Small streamOptimized VMDKs with one lie in each, and what the reader takes from them."""

import os
import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from holdfast.storage.formats.reading import Reader
from holdfast.storage.formats.vmdk import HEADER
from holdfast.storage.formats.vmdk_stream import GrainStream, inflate, layout
from holdfast.storage.formats.vmdk_writer import GRAIN, VmdkWriter

SECTOR = 512
SIZE = 70 * 1024 * 1024 + 4096  # three grain tables, and a last grain that is not whole
GRAINS = (0, 1, 7, 511, 512, 600, 1119, 1120)


def content(index: int) -> bytes:
    """Of one grain: mostly alike, so that it is small, yet its own."""
    return (struct.pack("<Q", index + 1) * 64).ljust(GRAIN, bytes([index % 251 + 1]))


def stream(
    grains: tuple[int, ...] = GRAINS, size: int = SIZE, packed: dict[int, bytes] | None = None
) -> bytearray:
    made = bytearray()
    writer = VmdkWriter(lambda data: made.extend(data), size, "disk.vmdk", 7)
    for index in grains:
        data = content(index)
        if index == size // GRAIN:
            data = data[: size % GRAIN].ljust(GRAIN, b"\0")
        writer.grain(index, (packed or {}).get(index) or zlib.compress(data))
    writer.finish()
    return made


@contextmanager
def opened(data: bytes, before: bytes = b"", behind: bytes = b"") -> Iterator[Reader]:
    """A reader of `data` where other bytes lie around it."""
    fd = os.memfd_create("vmdk")
    try:
        os.write(fd, before + data + behind)
        with Reader.within(fd, len(before), len(data), "disk.vmdk") as reader:
            yield reader
    finally:
        os.close(fd)


def taken(data: bytes, before: bytes = b"", behind: bytes = b"") -> dict[int, bytes]:
    """What the reader takes: the bytes at each place of the disk. Raises as the reader does."""
    with opened(data, before, behind) as reader:
        found = layout(reader)
        heard = bytearray()
        disk: dict[int, bytes] = {}
        for batch in GrainStream(reader, found, lambda piece: heard.extend(piece)).batches():
            assert sum(grain.length for grain in batch.grains) <= 4 * 1024 * 1024
            for grain in batch.grains:
                assert grain.offset not in disk
                disk[grain.offset] = inflate(grain, found.grain)
                assert grain.offset + len(disk[grain.offset]) <= found.capacity
        assert heard == data
        return disk


def markers(data: bytes) -> dict[int, int]:
    """Where the marker of each grain is, by the grain's number."""
    found, at = {}, 128 * SECTOR
    while True:
        value, size, kind = struct.unpack_from("<QII", data, at)
        if size:
            found[value // 128] = at
            at += -(-(12 + size) // SECTOR) * SECTOR
        elif kind == 0:
            return found
        else:
            at += (1 + value) * SECTOR


def tables(data: bytes) -> dict[int, int]:
    """Where each entry of a grain table is, by the grain's number; and `-1`: where the directory is."""
    (directory,) = struct.unpack_from("<Q", data, len(data) - 2 * SECTOR + 56)
    places = {-1: directory * SECTOR}
    (capacity,) = struct.unpack_from("<Q", data, 12)
    for index in range(-(-capacity // (128 * 512))):
        (table,) = struct.unpack_from("<I", data, directory * SECTOR + 4 * index)
        places |= {index * 512 + entry: table * SECTOR + 4 * entry for entry in range(512) if table}
    return places


_NUMBERS = (0, 1, 2, 3, 127, 128, 129, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)


def mutated(data: bytes, source: random.Random) -> bytes:
    """One to three small changes, most of them in what says where things are."""
    changed = bytearray(data)
    telling = [*markers(data).values(), *tables(data).values(), *range(80), len(data) - 1024]
    for _ in range(source.choice((1, 1, 2, 3))):
        match source.randrange(8):
            case 0:
                del changed[source.randrange(len(changed)) :]
            case 1:
                at = source.randrange(len(changed))
                del changed[at : at + source.choice((1, 512, 4096))]
            case 2:
                at = source.randrange(len(changed))
                changed[at:at] = bytes(source.choice((1, 512, 4096)))
            case 3:
                one, other = source.choice(telling), source.choice(telling)
                changed[one : one + 8] = changed[other : other + 8]
            case 4 | 5:
                number = source.choice(_NUMBERS)
                size = source.choice((4, 8))
                at = source.choice(telling) + source.choice((0, 0, 8, 12))
                changed[at : at + size] = (number & (1 << 8 * size) - 1).to_bytes(size, "little")
            case _:
                at = source.choice((source.choice(telling), source.randrange(len(data))))
                if at < len(changed):
                    changed[at] ^= 1 << source.randrange(8)
        if not changed:
            break
    return bytes(changed)


EXTENT_GRAIN, EXTENT_DIRECTORY, EXTENT_TABLES = 8, 21, 22
EXTENT_DATA = EXTENT_TABLES + 2 * 4
EXTENT_SIZE = 600 * EXTENT_GRAIN * SECTOR
EXTENT_TEXT = b"""# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicSparse"
RW 4800 SPARSE "disk.vmdk"
"""


def sparse_extent(
    entries: dict[int, int],
    directory: tuple[int, ...] = (EXTENT_TABLES, EXTENT_TABLES + 4),
    text: bytes = EXTENT_TEXT,
) -> bytes:
    """monolithicSparse: tables by `entries` (number of the grain to its sector), and three grains behind."""
    made = bytearray((EXTENT_DATA + 3 * EXTENT_GRAIN) * SECTOR)
    fields = (1, 3, EXTENT_SIZE // SECTOR, EXTENT_GRAIN, 1, 20, 512, 0, EXTENT_DIRECTORY, EXTENT_DATA)
    HEADER.pack_into(made, 0, b"KDMV", *fields)
    made[SECTOR : SECTOR + len(text)] = text
    struct.pack_into("<2I", made, EXTENT_DIRECTORY * SECTOR, *directory)
    for grain, sector in entries.items():
        struct.pack_into("<I", made, EXTENT_TABLES * SECTOR + 4 * grain, sector)
    return bytes(made)
