"""qcow2 tables over blocks that lie anywhere in a file of the journal (QEMU, docs/interop/qcow2.txt). Pure.

The journal's file becomes an image without its data being touched: clusters of 4 KiB, a header in one of
the blocks kept for that, L1 and L2 tables at the file's end. Offsets count from the header, so many images
lie in one file and QEMU opens each behind a raw node with an `offset`. They are opened for reading only:
there are no reference counts, and many L1 entries share the one L2 table of zeroes.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.replication.store.index import BLOCK, PLACE_MASK, Entries, Ranges

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_PER_TABLE = BLOCK // 8
_COPIED = np.uint64(1 << 63)
_ZERO = 1
_LARGEST_L1 = 32 * 1024 * 1024  # bytes, QCOW_MAX_L1_SIZE of QEMU's block/qcow2.h
LARGEST_DISK = _LARGEST_L1 // 8 * _PER_TABLE * BLOCK
"""Bytes of the largest disk that such tables can describe: 8 TiB."""

Table = NDArray[np.uint64]


@dataclass(frozen=True)
class Tables:
    """Of one disk over one file, before it is known where they go."""

    size: int
    """Bytes of the disk."""
    entries: Entries
    """Those in this file."""
    zeros: Ranges
    """What reads as zeroes, but for the entries."""

    @property
    def _l1_length(self) -> int:
        return -(-self.size // (_PER_TABLE * BLOCK))

    @property
    def _l1_blocks(self) -> int:
        return -(-self._l1_length // _PER_TABLE)

    def _own(self) -> Table:
        """Numbers of the L2 tables that are not all alike."""
        begins, ends = self._bounds()
        partial = np.concatenate(
            (begins[begins % _PER_TABLE != 0], ends[ends % _PER_TABLE != 0]),
        )
        return np.unique(np.concatenate((self.entries["block"], partial)) // _PER_TABLE)

    def _bounds(self) -> tuple[Table, Table]:
        blocks = -(-self.size // BLOCK)
        begins = np.minimum(self.zeros["block"], np.uint64(blocks))
        ends = np.minimum(self.zeros["block"] + self.zeros["count"], np.uint64(blocks))
        return begins, ends

    @property
    def blocks(self) -> int:
        """How many blocks of the file they take, beside the header."""
        return self._l1_blocks + len(self._own()) + 2

    def encode(self, header_at: int, tables_at: int) -> tuple[bytes, bytes]:
        """The header's block, and all the others. Places are byte offsets in the file."""
        own = self._own()
        start = tables_at - header_at
        own_at = start + self._l1_blocks * BLOCK
        zero_table_at = own_at + len(own) * BLOCK
        l1 = np.zeros(self._l1_blocks * _PER_TABLE, ">u8")
        l2 = np.zeros((len(own), _PER_TABLE), ">u8")
        for begin, end in zip(*(each.tolist() for each in self._bounds()), strict=True):
            self._clear(l1, l2, own, (begin, end), zero_table_at)
        offsets = (self.entries["at"] & np.uint64(PLACE_MASK)) * np.uint64(BLOCK) - np.uint64(header_at)
        table = np.searchsorted(own, self.entries["block"] // _PER_TABLE)
        l2[table, self.entries["block"] % _PER_TABLE] = offsets | _COPIED
        l1[own] = (np.arange(len(own), dtype=np.uint64) * BLOCK + own_at) | _COPIED
        header = _HEADER.pack(
            *(b"QFI\xfb", 3, 0, 0, BLOCK.bit_length() - 1, self.size, 0),
            *(self._l1_length, start, zero_table_at + BLOCK, 1, 0, 0),
            *(0, 0, 0, 4, _HEADER.size),
        )
        zero_table = np.full(_PER_TABLE, _ZERO, ">u8").tobytes()
        return header.ljust(BLOCK, b"\0"), l1.tobytes() + l2.tobytes() + zero_table + bytes(BLOCK)

    @staticmethod
    def _clear(l1: Table, l2: Table, own: Table, zeros: tuple[int, int], zero_table_at: int) -> None:
        """One range: whole tables are the shared one, parts of tables stand in their own."""
        begin, end = zeros
        first, last = -(-begin // _PER_TABLE), end // _PER_TABLE
        if first < last:
            l1[first:last] = zero_table_at | int(_COPIED)
            low, high = np.searchsorted(own, np.array([first, last], np.uint64))
            l2[low:high] = _ZERO
        for number in {begin // _PER_TABLE, end // _PER_TABLE}:
            low, high = max(begin, number * _PER_TABLE), min(end, (number + 1) * _PER_TABLE)
            if low < high and high - low < _PER_TABLE:
                at = int(np.searchsorted(own, np.uint64(number)))
                l2[at, low - number * _PER_TABLE : high - number * _PER_TABLE] = _ZERO
