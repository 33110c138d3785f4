"""Comparing the disks of a captured cycle with what the receiver holds: by digests, over its own link.

What turns out to be the same is not kept up any longer while the guest writes, so that a long comparison
takes little room on the source.

The link belongs to one thread, so questions are gathered: whatever the comparison wants to know at a time is
asked at once, and answered in that order.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence

from blake3 import blake3

from holdfast.replication.capture import Captured, CapturedDisk
from holdfast.replication.link import Link, hear, tell
from holdfast.replication.nbd import Source
from holdfast.replication.resync import LEAF, REGION, Compared, HashTree, differences
from holdfast.replication.wire import Ask, Digests, Extent
from holdfast.spec.units import KIB, MIB

_PIECE = 4 * MIB
_AT_ONCE = 64  # questions whose answers both sides' buffers hold
_MOST_EXTENTS = 1 << 18
_ANSWER_SECONDS = 120.0


def compare(
    link: Link, captured: Captured, disk: CapturedDisk, looked: Callable[[int], None] = lambda _: None
) -> tuple[list[Extent], int]:
    """Where a captured disk is not what the receiver holds, and how many bytes were looked at; blocks.

    The extents are ascending and few; they hold more than what differs where that lies scattered.

    `looked`: told the bytes that were hashed since it was told last, by one thread at a time.

    Raises SourceLost, LinkLost, PeerRefused, FrameRefused, WrongAnswer.
    """
    with contextlib.closing(Source(captured.socket, disk.export, None)) as source:
        return asyncio.run(_compared(_Snapshot(source, looked), _Peer(link, disk.id), disk.size))


async def _compared(local: "_Snapshot", remote: "_Peer", size: int) -> tuple[list[Extent], int]:
    counted, found, gap = Compared(), [], 0
    async for each in differences(HashTree(local.hashes), remote, size, counted, local.forget):
        found.append((each.offset, each.length))
        while len(found) > _MOST_EXTENTS:
            gap = min(max(64 * KIB, 2 * gap), REGION // 2)  # never over one that was forgotten
            found = joined(found, gap)
    return found, counted.bytes_compared


def joined(extents: Sequence[Extent], gap: int) -> list[Extent]:
    """Ascending extents, with those made one that lie at most `gap` bytes apart."""
    found: list[Extent] = []
    for offset, length in extents:
        if found and offset - sum(found[-1]) <= gap:
            found[-1] = (found[-1][0], offset + length - found[-1][0])
        else:
            found.append((offset, length))
    return found


class _Snapshot:
    """This side. `hashes` is called by several threads."""

    def __init__(self, source: Source, looked: Callable[[int], None]) -> None:
        self._source = source
        self._looked = looked
        self._one = threading.Lock()
        self._zeroes: dict[int, bytes] = {}

    def hashes(self, offset: int, length: int, block: int) -> bytes:
        """As `resync.ReadHashes`."""
        found = []
        for start in range(offset, offset + length, _PIECE):
            size = min(_PIECE, offset + length - start)
            content = self._read(start, size)
            for at in range(0, size, block):
                count = min(block, size - at)
                found.append(
                    self._zero(count) if content is None else blake3(content[at : at + count]).digest()
                )
            if block == LEAF:  # finer ones are looked at once more
                with self._one:
                    self._looked(size)
        return b"".join(found)

    def forget(self, offset: int, length: int) -> None:
        """It is not looked at again."""
        with self._one:
            self._source.trim([(offset, length)])

    def _read(self, start: int, size: int) -> memoryview | None:
        """None: it reads as zeroes."""
        with self._one:
            extents = self._source.content(start, size)
            if not extents:
                return None
            target = memoryview(bytearray(size))
            for offset, length in extents:
                self._source.read([(offset, length)], target[offset - start :][:length])
            return target

    def _zero(self, length: int) -> bytes:
        if length not in self._zeroes:
            self._zeroes[length] = blake3(bytes(length)).digest()
        return self._zeroes[length]


class _Peer:
    """The other side: `resync.Hashes` over a link."""

    def __init__(self, link: Link, disk: str) -> None:
        self._link = link
        self._disk = disk
        self._waiting: list[tuple[Ask, asyncio.Future[bytes]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def root(self, offset: int, length: int) -> bytes:
        return await self._ask(offset, length, 0)

    async def digests(self, offset: int, length: int, block: int) -> bytes:
        return await self._ask(offset, length, block)

    async def _ask(self, offset: int, length: int, block: int) -> bytes:
        asked = Ask.model_validate({"disk": self._disk, "offset": offset, "length": length, "block": block})
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
            try:
                answers = await asyncio.to_thread(self._answers, [each for each, _ in asked])
            except Exception as error:  # told to all who wait: the link is of no use any more
                for _, answer in asked + self._waiting:
                    if not answer.done():
                        answer.set_exception(error)
                self._waiting = []
                return
            for (_, answer), found in zip(asked, answers, strict=True):
                if not answer.done():
                    answer.set_result(found)

    def _answers(self, asked: Sequence[Ask]) -> list[bytes]:
        for each in asked:
            tell(self._link, each)
        return [bytes.fromhex(hear(self._link, Digests, _ANSWER_SECONDS).digests) for _ in asked]
