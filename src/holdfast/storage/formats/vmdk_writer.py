"""Writes a streamOptimized VMDK front to back, so that it can go anywhere (VMware, Virtual Disk Format 5.0).

    header │ descriptor │ grain grain ... table │ grain ... table │ directory │ footer │ end

It is laid out as `formats.vmdk_stream` reads it: only grains with data, each table behind its grains, and
the header that is true as the footer.
"""

import struct
import sys
from array import array
from collections.abc import Callable

from isal import isal_zlib

from holdfast.storage.formats.reading import SECTOR
from holdfast.storage.formats.refusals import DiskTooLargeForVmdk
from holdfast.storage.formats.vmdk import HEADER, MAGIC

GRAIN = 64 * 1024
"""Bytes of the disk in one grain."""

_GRAIN_SECTORS = GRAIN // SECTOR
_PER_TABLE = 512
_TABLE_SECTORS = _PER_TABLE * 4 // SECTOR
_VERSION = 3
_FLAGS = 1 | 1 << 16 | 1 << 17
"""The test of line ends holds; compressed grains; markers."""
_LINE_ENDS = b"\0\n \r\n"
"""Cleanly closed, and how line ends must look if the file came through unchanged."""
_DEFLATE = 1
_TEXT_AT, _TEXT_SECTORS, _OVERHEAD = 1, 20, 128
_AT_END = 0xFFFFFFFFFFFFFFFF
_TABLE, _DIRECTORY, _FOOTER = 1, 2, 3
_MOST_SECTORS = 1 << 32
_LEVEL = 3
"""ISA-L's best: still many times as fast as zlib, for some hundredths more of size."""
_HEADS, _TRACK = 255, 63


def deflate(grain: bytes | memoryview) -> bytes:
    """A grain as it stands in the file: zlib, RFC 1950. Lets other threads run."""
    packed: bytes = isal_zlib.compress(grain, _LEVEL)
    return packed


class VmdkWriter:
    """One VMDK, given to `put` in order."""

    def __init__(self, put: Callable[[bytes], None], size: int, name: str, content_id: int) -> None:
        """`size`: bytes of the disk, a multiple of 512. `name`: the file's own. `content_id`: 32 bits."""
        self._put = put
        self._capacity = size // SECTOR
        tables = -(-self._capacity // (_GRAIN_SECTORS * _PER_TABLE))
        self._directory = array("I", bytes(4 * tables))
        self._table = array("I", bytes(4 * _PER_TABLE))
        self._current = -1
        self._sector = 0
        text = _text(self._capacity, name, content_id).encode()
        self._emit(self._header(_AT_END))
        self._emit(text.ljust(_TEXT_SECTORS * SECTOR, b"\0"))
        self._emit(bytes((_OVERHEAD - _TEXT_AT - _TEXT_SECTORS) * SECTOR))

    def grain(self, index: int, packed: bytes) -> None:
        """The grain of this number, deflated; numbers only rise. One whose bytes are all zero is left out.

        Raises:
            DiskTooLargeForVmdk: the file would pass 2 TiB.
        """
        table, place = divmod(index, _PER_TABLE)
        if table != self._current:
            self._end_table()
            self._current = table
        self._table[place] = self._sector
        marked = struct.pack("<QI", index * _GRAIN_SECTORS, len(packed)) + packed
        self._emit(marked.ljust(-(-len(marked) // SECTOR) * SECTOR, b"\0"))

    def finish(self) -> None:
        """Tables, directory, footer and the end."""
        self._end_table()
        directory = _little(self._directory)
        length = -(-len(directory) // SECTOR)
        self._emit(_marker(length, _DIRECTORY))
        at = self._sector
        self._emit(directory.ljust(length * SECTOR, b"\0"))
        self._emit(_marker(1, _FOOTER))
        self._emit(self._header(at))
        self._emit(bytes(SECTOR))

    def _end_table(self) -> None:
        if self._current >= 0:
            self._emit(_marker(_TABLE_SECTORS, _TABLE))
            self._directory[self._current] = self._sector
            self._emit(_little(self._table))
            self._table = array("I", bytes(4 * _PER_TABLE))

    def _header(self, directory: int) -> bytes:
        fields = HEADER.pack(
            MAGIC,
            _VERSION,
            _FLAGS,
            self._capacity,
            _GRAIN_SECTORS,
            _TEXT_AT,
            _TEXT_SECTORS,
            _PER_TABLE,
            0,
            directory,
            _OVERHEAD,
        )
        return (fields + _LINE_ENDS + struct.pack("<H", _DEFLATE)).ljust(SECTOR, b"\0")

    def _emit(self, data: bytes) -> None:
        self._sector += len(data) // SECTOR
        if self._sector >= _MOST_SECTORS:
            raise DiskTooLargeForVmdk(
                "the disk does not fit into a VMDK file, which ends at 2 TiB",
                value=self._sector * SECTOR,
                cure="Export it as qcow2 or vhdx.",
            )
        self._put(data)


def _marker(sectors: int, kind: int) -> bytes:
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")


def _little(numbers: "array[int]") -> bytes:
    if sys.byteorder == "big":
        numbers = array("I", numbers)
        numbers.byteswap()
    return numbers.tobytes()


def _text(capacity: int, name: str, content_id: int) -> str:
    """The descriptor (section "The Descriptor File"); the geometry is for firmware of another age."""
    cylinders = min(capacity // (_HEADS * _TRACK), 65535)
    return f"""# Disk DescriptorFile
version=1
CID={content_id & 0xFFFFFFFF:08x}
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW {capacity} SPARSE "{name}"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "{_HEADS}"
ddb.geometry.sectors = "{_TRACK}"
ddb.virtualHWVersion = "13"
"""
