"""How far a conversion has come, on disk, so that it goes on there after a crash.

Two slots in the first cluster of the volume itself, behind its header, where qcow2 has room for nothing
else of ours (QEMU, docs/interop/qcow2.txt, "Header"). They are written in turn: whichever was being written
when the power went has a wrong checksum, and the other one holds. In a whole volume they say nothing.
"""

import os
import struct
import zlib
from dataclasses import dataclass

_SLOT = 4096
_FIRST = 64 * 1024
_RECORD = struct.Struct("<8s32sQQQQ")
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"hf-mark1"


@dataclass(frozen=True)
class Mark:
    number: int
    """From 1, in the order in which they were written."""
    position: int
    """Where in the source to go on, in bytes."""
    seen: int
    """Pieces of the source before that."""
    end: int
    """Bytes of the target that hold."""


def read_mark(fd: int, key: bytes) -> Mark | None:
    """The latest whole mark of the work that `key` (32 bytes) names; None where there is none."""
    found = []
    for slot in range(2):
        raw = os.pread(fd, _SLOT, _FIRST + slot * _SLOT)
        if len(raw) < _RECORD.size + _CHECKSUM.size:
            continue
        (checksum,) = _CHECKSUM.unpack_from(raw, _RECORD.size)
        magic, whose, *fields = _RECORD.unpack_from(raw)
        if magic == _MAGIC and whose == key and zlib.crc32(raw[: _RECORD.size]) == checksum:
            found.append(Mark(*fields))
    return max(found, key=lambda mark: mark.number, default=None)


def write_mark(fd: int, key: bytes, mark: Mark) -> None:
    """Make a mark durable; what it vouches for must be so already. `fd` is the volume's."""
    raw = _RECORD.pack(_MAGIC, key, mark.number, mark.position, mark.seen, mark.end)
    raw += _CHECKSUM.pack(zlib.crc32(raw))
    os.pwrite(fd, raw.ljust(_SLOT, b"\0"), _FIRST + mark.number % 2 * _SLOT)
    os.fdatasync(fd)
