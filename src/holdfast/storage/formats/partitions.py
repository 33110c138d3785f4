"""The partitions of a disk: GPT (UEFI specification, chapter 5.3), else the four of an MBR (5.2.1).

The table was written by a guest: it is bounded, and a partition that leaves the disk is passed over.
"""

import struct
import uuid
import zlib
from dataclasses import dataclass

from holdfast.storage.formats.qcow2_chain import Bytes

SECTOR = 512
SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
"""Type of an EFI system partition."""

_MBR_SYSTEM, _MBR_PROTECTIVE = 0xEF, 0xEE
_HEADER = struct.Struct("<8sLLLLQQQQ16sQLLL")
_MAX_ENTRIES = 512
_LARGEST_ENTRY = 512


@dataclass(frozen=True)
class Partition:
    number: int
    """From 1."""
    start: int
    """Bytes from the beginning of the disk."""
    size: int
    """Bytes."""
    system: bool
    """An EFI system partition, by its type."""
    guid: uuid.UUID | None = None
    """Its own; None on an MBR."""


def partitions(disk: Bytes) -> tuple[Partition, ...]:
    """In the order of the table; empty where there is none."""
    sectors = disk.size // SECTOR
    if sectors < 3:
        return ()
    found = _gpt(disk, 1, sectors)
    if found is None:
        found = _gpt(disk, sectors - 1, sectors)  # the backup, when the first was destroyed
    return found if found is not None else _mbr(disk, sectors)


def _gpt(disk: Bytes, lba: int, sectors: int) -> tuple[Partition, ...] | None:
    raw = disk.read(lba * SECTOR, SECTOR)
    fields = _HEADER.unpack_from(raw)
    magic, _, length, checksum, _, _, _, _, _, _, table, count, size, table_checksum = fields
    if magic != b"EFI PART" or not _HEADER.size <= length <= SECTOR:
        return None
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:length]) != checksum:
        return None
    if not 128 <= size <= _LARGEST_ENTRY or count > _MAX_ENTRIES or table >= sectors:
        return None
    entries = disk.read(table * SECTOR, count * size)
    if zlib.crc32(entries) != table_checksum:
        return None
    found = []
    for index in range(count):
        kind, own, first, last = struct.unpack_from("<16s16sQQ", entries, index * size)
        if any(kind) and first <= last < sectors:
            system = uuid.UUID(bytes_le=kind) == SYSTEM
            place = first * SECTOR, (last - first + 1) * SECTOR
            found.append(Partition(index + 1, *place, system, uuid.UUID(bytes_le=own)))
    return tuple(found)


def _mbr(disk: Bytes, sectors: int) -> tuple[Partition, ...]:
    raw = disk.read(0, SECTOR)
    if raw[510:] != b"\x55\xaa":
        return ()
    found = []
    for index in range(4):
        kind, first, count = struct.unpack_from("<4xB3xLL", raw, 446 + 16 * index)
        if kind not in (0, _MBR_PROTECTIVE) and count and first + count <= sectors:
            found.append(Partition(index + 1, first * SECTOR, count * SECTOR, kind == _MBR_SYSTEM))
    return tuple(found)
