"""Finds what differs between two sides of a disk: hash trees of both, of which only what differs is sent.

    region, 64 MiB      the BLAKE3 of the digests of its leaves; most are alike
    leaf, 64 KiB        1,024 digests for each region that differs
    block, 4 KiB        16 digests for each leaf that differs: the grain of what is shipped

Digests are BLAKE3 with 32 bytes. Each side reads its whole disk once, and leaves that differ once more; a
region that is the same on both costs 32 bytes on the wire. Several regions are under way at a time, so that
both sides' disks and the link work at once.
"""

import asyncio
import errno
import os
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from blake3 import blake3

from holdfast.host.threads import to_its_end
from holdfast.spec.errors import Failed
from holdfast.spec.units import KIB, MIB

REGION, LEAF, BLOCK = 64 * MIB, 64 * KIB, 4 * KIB
DIGEST = 32
UNDER_WAY = 4
"""Regions that are compared at a time."""
_LEAVES_UNDER_WAY = 32
"""Of one region: the link's latency is not paid for each."""
_PIECE = 4 * MIB
"""Bytes that are read at a time."""
_KEPT = 4 * UNDER_WAY
"""Regions whose leaves a side remembers, 32 KiB each."""

ReadHashes = Callable[[int, int, int], bytes]
"""Of one disk: offset, length and block, in bytes, to the digest of each block, one behind the other."""


class Hashes(Protocol):
    """One side of one disk, at one instant. Another host's comes over a link and is not to be trusted."""

    async def root(self, offset: int, length: int) -> bytes:
        """The BLAKE3 of the digests of a region's leaves."""

    async def digests(self, offset: int, length: int, block: int) -> bytes:
        """The digest of each `block` bytes (`LEAF` or `BLOCK`) within one region; the last may be shorter."""


class HashTree:
    """This host's side of a disk."""

    def __init__(self, read: ReadHashes) -> None:
        """`read` blocks and is called in threads, several at once."""
        self._read = read
        self._leaves: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    async def root(self, offset: int, length: int) -> bytes:
        leaves = await to_its_end(self._read, offset, length, LEAF)
        self._leaves[offset, length] = leaves
        while len(self._leaves) > _KEPT:
            self._leaves.popitem(last=False)
        return blake3(leaves).digest()

    async def digests(self, offset: int, length: int, block: int) -> bytes:
        kept = self._leaves.pop((offset, length), None) if block == LEAF else None
        return kept if kept is not None else await to_its_end(self._read, offset, length, block)


class FileContent:
    """A file or block device as one side of a comparison; holes are not read."""

    def __init__(self, fd: int) -> None:
        """`fd`: open for reading, also by several threads at once; it stays the caller's."""
        self._fd = fd
        self._zeroes: dict[int, bytes] = {}

    def hashes(self, offset: int, length: int, block: int) -> bytes:
        """As `ReadHashes`; what lies beyond the file's end reads as zeroes. `block` divides 4 MiB."""
        found = []
        for start in range(offset, offset + length, _PIECE):
            size = min(_PIECE, offset + length - start)
            if self._is_hole(start, size):
                found += [self._zero(min(block, size - at)) for at in range(0, size, block)]
                continue
            view = memoryview(os.pread(self._fd, size, start).ljust(size, b"\0"))
            found += [blake3(view[at : at + block]).digest() for at in range(0, size, block)]
        return b"".join(found)

    def _is_hole(self, offset: int, length: int) -> bool:
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            return error.errno == errno.ENXIO  # only a hole is left; devices say EINVAL

    def _zero(self, length: int) -> bytes:
        if length not in self._zeroes:
            self._zeroes[length] = blake3(bytes(length)).digest()
        return self._zeroes[length]


class WrongAnswer(Failed):
    """The other side sent another number of digests than it was asked for."""

    id = "replica-wrong-digests"


@dataclass(frozen=True)
class Difference:
    offset: int
    length: int


@dataclass
class Compared:
    """Counts what a comparison took; it grows while it runs."""

    bytes_compared: int = 0
    bytes_different: int = 0
    digests: int = 0
    """That the other side sent."""


async def differences(
    local: Hashes,
    remote: Hashes,
    size: int,
    counted: Compared | None = None,
    same: Callable[[int, int], None] = lambda *_: None,
) -> AsyncIterator[Difference]:
    """Where the two sides differ, ascending, by blocks of 4 KiB; neighbours are one.

    Both have `size` bytes; where one is shorter, what it lacks reads as zeroes on its side.

    Args:
        same: told offset and length of each region in which nothing differs; it is not looked at again.

    Raises:
        WrongAnswer: the other side does not keep to the protocol. Whatever a side raises is raised.
    """
    counted = counted or Compared()
    waiting = deque(range(0, size, REGION))
    running: deque[tuple[int, asyncio.Task[list[Difference]]]] = deque()
    open_end: Difference | None = None
    try:
        while waiting or running:
            while waiting and len(running) < UNDER_WAY:
                at = waiting.popleft()
                work = _region(local, remote, at, min(REGION, size - at), counted)
                running.append((at, asyncio.create_task(work)))
            first, task = running[0]
            found = await task
            running.popleft()
            if not found:
                same(first, min(REGION, size - first))
            for each in found:
                if open_end is not None and open_end.offset + open_end.length == each.offset:
                    open_end = Difference(open_end.offset, open_end.length + each.length)
                    continue
                if open_end is not None:
                    yield open_end
                open_end = each
        if open_end is not None:
            yield open_end
    finally:
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)


async def _region(
    local: Hashes, remote: Hashes, offset: int, length: int, counted: Compared
) -> list[Difference]:
    ours, theirs = await asyncio.gather(local.root(offset, length), remote.root(offset, length))
    _require(theirs, 1)
    counted.bytes_compared += length
    counted.digests += 1
    if ours == theirs:
        return []
    found: list[Difference] = []
    leaves = await _both(local, remote, Difference(offset, length), LEAF, counted)
    for first in range(0, len(leaves), _LEAVES_UNDER_WAY):
        part = leaves[first : first + _LEAVES_UNDER_WAY]
        for each in await asyncio.gather(*(_both(local, remote, leaf, BLOCK, counted) for leaf in part)):
            found += each
    counted.bytes_different += sum(each.length for each in found)
    return found


async def _both(
    local: Hashes, remote: Hashes, where: Difference, block: int, counted: Compared
) -> list[Difference]:
    """Blocks whose digests differ."""
    ours, theirs = await asyncio.gather(
        local.digests(where.offset, where.length, block), remote.digests(where.offset, where.length, block)
    )
    count = -(-where.length // block)
    _require(theirs, count)
    counted.digests += count
    return [
        Difference(where.offset + at * block, min(block, where.length - at * block))
        for at in range(count)
        if ours[at * DIGEST : (at + 1) * DIGEST] != theirs[at * DIGEST : (at + 1) * DIGEST]
    ]


def _require(digests: bytes, count: int) -> None:
    if len(digests) != count * DIGEST:
        raise WrongAnswer(
            f"the other host sent {len(digests)} bytes of digests where {count * DIGEST} were asked for",
            value=len(digests),
            cure="See that both hosts run the same version of Holdfast.",
        )
