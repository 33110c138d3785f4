"""The content of a point: the base with the newest of all changes up to the point over it. Read only."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from blake3 import blake3
from isal import isal_zlib

from holdfast.replication.store.holdings import Holdings
from holdfast.replication.store.index import BLOCK, Changes, Entries, Index, merged
from holdfast.spec.units import MIB

_PIECE = 4 * MIB
_LONGEST_RUN = MIB // BLOCK
DIGEST = 32
"""Bytes of a BLAKE3 digest."""
UNREADABLE = bytes(DIGEST)
"""In the place of the digest of what is damaged: it equals that of nothing."""


def block_sums(data: bytes | memoryview) -> list[int]:
    """CRC-32 (ISO 3309) of each 4 KiB."""
    view = memoryview(data)
    return [isal_zlib.crc32(view[at : at + BLOCK]) for at in range(0, len(view), BLOCK)]


def adjacent(entries: Entries) -> Iterator[Entries]:
    """Cut so that both blocks and places of each part follow each other; 1 MiB at most."""
    if not len(entries):
        return
    apart = (np.diff(entries["block"]) != 1) | (np.diff(entries["at"]) != 1)
    cuts = [0, *(np.flatnonzero(apart) + 1).tolist(), len(entries)]
    for start, end in itertools.pairwise(cuts):
        for at in range(start, end, _LONGEST_RUN):
            yield entries[at : min(at + _LONGEST_RUN, end)]


def read_checked(holdings: Holdings, run: Entries) -> tuple[bytes, list[int]]:
    """What adjacent entries hold, and which of them (0 is the first) are not what arrived."""
    data = holdings.journal.read(int(run["at"][0]), len(run))
    sums = block_sums(data.ljust(len(run) * BLOCK, b"\0"))
    bad = [number for number, (found, want) in enumerate(zip(sums, run["crc"], strict=True)) if found != want]
    short = range(len(data) // BLOCK, len(run))
    return data, sorted({*bad, *short})


class View:
    """Use it while holding `upkeep`: else what it reads may be given back meanwhile."""

    def __init__(self, holdings: Holdings, number: int | None, since: int = 0) -> None:
        """`number` of None: the newest state, also where no cycle has arrived whole.

        `since`: of a point before; only what changed after it is looked for over the base.
        """
        self._spans: Sequence[Index] = [
            each
            for each in list(holdings.spans)
            if (number is None or each.head.last <= number)
            and each.head.first > since
            and holdings.usable(each)
        ]
        self._holdings = holdings

    def spans(self, disk: str) -> list[Changes]:
        """Of one disk, the oldest first."""
        return [each.changes(disk) for each in self._spans]

    def read(self, disk: str, first: int, count: int) -> tuple[bytearray, list[int]]:
        """So many blocks, and which of them (by their numbers on the disk) are damaged."""
        return self._read(disk, self.spans(disk), first, count)

    def _read(
        self, disk: str, spans: Sequence[Changes], first: int, count: int
    ) -> tuple[bytearray, list[int]]:
        changes, _ = merged([each.within(first, first + count) for each in spans])
        base = self._holdings.files.read(self._holdings.base_path(disk), first * BLOCK, count * BLOCK)
        data = bytearray(base.ljust(count * BLOCK, b"\0"))
        for begin, length in changes.zeros.tolist():
            low, high = max(begin, first) - first, min(begin + length, first + count) - first
            if low < high:
                data[low * BLOCK : high * BLOCK] = bytes((high - low) * BLOCK)
        damaged = []
        for run in adjacent(changes.entries):
            start = int(run["block"][0])
            part, bad = read_checked(self._holdings, run)
            at = (start - first) * BLOCK
            data[at : at + len(part)] = part
            damaged += [start + each for each in bad]
        return data, damaged

    def hashes(self, disk: str, offset: int, length: int, block: int) -> bytes:
        """BLAKE3 of each `block` bytes, one behind the other; the last may be of fewer bytes.

        `offset` and `block` are multiples of 4 KiB, all lies within the disk. What is damaged has
        `UNREADABLE`.
        """
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        changes, _ = merged([each.within(first, end) for each in self.spans(disk)])
        found = []
        piece = max(block, _PIECE // block * block)
        for start in range(offset, offset + length, piece):
            size = min(piece, offset + length - start)
            if self._is_empty(disk, changes, start, size):
                found += [_of_zeroes(min(block, size - at)) for at in range(0, size, block)]
                continue
            data, damaged = self._read(disk, [changes], start // BLOCK, -(-size // BLOCK))
            view = memoryview(data)[:size]
            bad = {(each * BLOCK - start) // block for each in damaged}
            for number, at in enumerate(range(0, size, block)):
                found.append(UNREADABLE if number in bad else blake3(view[at : at + block]).digest())
        return b"".join(found)

    def _is_empty(self, disk: str, changes: Changes, start: int, size: int) -> bool:
        """Whether a part is known to be all zeroes: most of a thin disk is, and need not be read."""
        within = changes.within(start // BLOCK, -(-(start + size) // BLOCK))
        return not len(within.entries) and self._holdings.files.is_hole(
            self._holdings.base_path(disk), start, size
        )


@functools.lru_cache(maxsize=64)
def _of_zeroes(length: int) -> bytes:
    return blake3(bytes(length)).digest()
