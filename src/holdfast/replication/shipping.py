"""One captured cycle on its way: read from QEMU and sent over a link at once, by two threads.

    reader   which extents ▶ trim what is clean ▶ read 1 MiB ──▶ 4 buffers ──▶ trim what was read
    sender                                        zeroes apart ▶ pack ▶ pace ▶ WRITE ... COMMIT ▶ COMMITTED

At most four buffers are under way, whatever the disk, the link and the other host do.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

from holdfast.replication import wire
from holdfast.replication.capture import Captured, CapturedDisk
from holdfast.replication.comparing import compare
from holdfast.replication.link import SILENCE_SECONDS, Buffer, Link, LinkLost, hear, refusal, tell
from holdfast.replication.moving import Meter, Phase, Told
from holdfast.replication.nbd import Source
from holdfast.replication.packing import Packing
from holdfast.replication.wire import Begin, Commit, Committed, DiskShape, Extent, Kind, Refused
from holdfast.spec.model import Frozen
from holdfast.spec.units import GIB, KIB, MIB

COMMIT_SECONDS = 300.0
"""How long the receiver may take to make a cycle durable."""
_BUFFERS = 4
_CLUSTER = 64 * KIB  # in which QEMU copies what is overwritten
_WIDE = 1 * MIB  # extents from here on are asked for zeroes, gaps from here on are trimmed
_BEHIND = 16 * MIB  # that is trimmed at once behind what was read
_WINDOW = 4 * GIB  # that is looked at at once: half a million extents at most
_ZEROES = bytes(wire.LARGEST_PAYLOAD)
_LONGEST_ZERO = 1 * GIB


class Shipped(Frozen):
    """What one cycle took."""

    written: int
    """Bytes of content."""
    zeroed: int
    """Bytes that read as zeroes."""
    sent: int
    """Bytes of all frames."""
    seconds: float
    full: bool = False
    """All of it was sent, whatever the receiver held."""
    compared: int = 0
    """Bytes of which both sides were compared first."""
    points: int = 0
    """That the receiver holds now."""
    lost: int = 0
    """Of them, that are lost by damage."""
    tested_us: int = 0
    """As `wire.Committed`."""


@dataclass(frozen=True)
class _Piece:
    """Extents of one disk with their content; without: they read as zeroes."""

    disk: int
    extents: list[Extent]
    content: memoryview | None = None
    buffer: bytearray | None = None
    """What `content` is of."""


class Shipper:
    """Ships the cycles of one VM over one link, on which the VM was opened.

    Args:
        pace: told the bytes of each frame before it is sent; it may wait.
        told: how far a cycle is, now and then.
    """

    def __init__(
        self,
        link: Link,
        pace: Callable[[int], None] = lambda _: None,
        told: Told = lambda _: None,
    ) -> None:
        self._link = link
        self._pace = pace
        self._told = told
        self._packing = Packing()
        self._sent = 0

    def ship(
        self, captured: Captured, base: int, attachments: Mapping[str, bytes], *, compared: bool = False
    ) -> Shipped:
        """Send a cycle and return once it is on stable storage over there.

        A disk of which it is not known what changed since `base` is compared with what the receiver holds.

        Args:
            base: the cycle that the receiver changes by this one; 0: none.
            attachments: what belongs to that instant besides disks, by name.
            compared: compare all disks, whatever the receiver holds of them.

        Raises:
            SourceLost: the disks could not be read.
            PeerRefused, LinkLost, FrameRefused, WrongAnswer: the receiver does not hold it, as far as is
                known.
        """
        begun, before, written, zeroed = time.monotonic(), self._sent, 0, 0
        full = not base and not compared
        meter = Meter(self._told)
        try:
            looked = {} if full else self._compare(captured, meter, everything=compared)
            self._tell(_begin(captured, base, compared=compared))
            known = {number: extents for number, (extents, _) in looked.items()}
            through = _through(captured, meter, full=full)
            with contextlib.closing(_pieces(captured, known, full=full)) as pieces:
                for piece in pieces:
                    content, zeroes = _apart(piece)
                    written += self._write(content)
                    zeroed += self._zero(zeroes)
                    meter.at(through(piece) if full else written + zeroed, self._sent - before)
                    if self._link.waiting():
                        raise refusal(self._link.receive())
            for name, data in attachments.items():
                self._attach(name, data)
            self._tell(Commit(cycle=captured.cycle, written=written, zeroed=zeroed))
            done = hear(self._link, Committed, COMMIT_SECONDS)
        except LinkLost as error:
            raise self._reason(error) from error
        if done.cycle != captured.cycle:
            raise refusal(done)
        return Shipped(
            written=written,
            zeroed=zeroed,
            sent=self._sent - before,
            seconds=time.monotonic() - begun,
            full=full,
            compared=sum(count for _, count in looked.values()),
            points=done.points,
            lost=done.lost,
            tested_us=done.tested_us,
        )

    def _compare(
        self, captured: Captured, meter: Meter, *, everything: bool
    ) -> dict[int, tuple[list[Extent], int]]:
        wanted = {
            number: disk for number, disk in enumerate(captured.disks) if everything or disk.since is None
        }
        meter.begin(Phase.COMPARING, sum(disk.size for disk in wanted.values()))
        return {
            number: compare(self._link, captured, disk, lambda count: meter.more(count, 0))
            for number, disk in wanted.items()
        }

    def _reason(self, lost: LinkLost) -> Exception:
        """A link may be lost because the receiver refused, and said so before."""
        with contextlib.suppress(LinkLost, wire.FrameRefused):
            said = self._link.receive(1.0)
            if isinstance(said, Refused):
                return refusal(said)
        return lost

    def _write(self, piece: _Piece) -> int:
        if piece.content is None or not piece.extents:
            return 0
        parts: tuple[Buffer, ...] = (wire.table(piece.disk, piece.extents), piece.content)
        self._packing.send(parts, lambda packed, size: self._send(Kind.WRITE, packed, size))
        return len(piece.content)

    def _zero(self, piece: _Piece) -> int:
        if piece.extents:
            self._send(Kind.ZERO, (wire.table(piece.disk, piece.extents),), None)
        return sum(length for _, length in piece.extents)

    def _attach(self, name: str, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, max(len(view), 1), wire.LARGEST_PAYLOAD):
            part = view[at : at + wire.LARGEST_PAYLOAD]
            head = wire.part(name, last=at + len(part) == len(view))
            self._packing.send((head, part), lambda packed, size: self._send(Kind.ATTACH, packed, size))

    def _tell(self, message: wire.Message) -> None:
        tell(self._link, message)
        self._sent += wire.HEADER_BYTES + len(wire.body(message))

    def _send(self, kind: Kind, parts: tuple[Buffer, ...], size: int | None) -> None:
        length = wire.HEADER_BYTES + sum(len(part) for part in parts)
        self._pace(length)
        self._link.send(kind, *parts, size=size)
        self._sent += length


def open_vm(link: Link, opened: wire.Open) -> wire.Standing:
    """Say which VM a link is about, and hear what the receiver holds of it. Raises as `hear`."""
    tell(link, opened)
    return hear(link, wire.Standing, SILENCE_SECONDS)


def _through(captured: Captured, meter: Meter, *, full: bool) -> Callable[[_Piece], int]:
    """Begin to send; returns how many bytes of the disks lie before the end of a piece."""
    before = [0]
    for disk in captured.disks:
        before.append(before[-1] + disk.size)
    meter.begin(*((Phase.COPYING, before[-1]) if full else (Phase.CHANGES, 0)))
    return lambda piece: before[piece.disk] + sum(piece.extents[-1])


def _begin(captured: Captured, base: int, *, compared: bool) -> Begin:
    shapes = tuple(DiskShape(id=disk.id, size=disk.size) for disk in captured.disks)
    taken = int(captured.taken * 1e6)
    return Begin(
        cycle=captured.cycle,
        base=base,
        taken_us=taken,
        disks=shapes,
        consistency=captured.consistency,
        compared=compared,
    )


def _pieces(
    captured: Captured, known: Mapping[int, list[Extent]], *, full: bool
) -> Generator[_Piece, None, None]:
    """Everything that changed, read by a thread that is ahead; closing the iterator ends it.

    `known`: of disks by their numbers, where they differ from what the receiver holds.
    """
    free: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
    ready: queue.SimpleQueue[_Piece | BaseException | None] = queue.SimpleQueue()
    for _ in range(_BUFFERS):
        free.put(bytearray(wire.LARGEST_PAYLOAD))

    def read() -> None:
        try:
            for number, disk in enumerate(captured.disks):
                with contextlib.closing(Source(captured.socket, disk.export, disk.bitmap)) as source:
                    wanted = _Wanted(disk, known.get(number), full)
                    for piece in _read(source, number, wanted, free):
                        ready.put(piece)
            ready.put(None)
        except BaseException as error:  # told to who waits for pieces
            ready.put(error)

    reader = threading.Thread(target=read, name="replica-reader", daemon=True)
    reader.start()
    try:
        while (piece := ready.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            if piece.buffer is not None:
                free.put(piece.buffer)
    finally:
        free.put(None)
        reader.join()


class _Enough(Exception):
    """Nobody wants more pieces."""


@dataclass(frozen=True)
class _Wanted:
    """What of a disk is to be sent."""

    disk: CapturedDisk
    known: list[Extent] | None
    full: bool

    def within(self, source: Source, window: Extent) -> list[Extent]:
        if self.known is not None:
            begin, end = window[0], sum(window)
            cut = ((max(begin, offset), min(end, offset + length)) for offset, length in self.known)
            return [(first, last - first) for first, last in cut if first < last]
        return [window] if self.full else source.changed(*window)


def _read(
    source: Source, number: int, wanted: _Wanted, free: "queue.SimpleQueue[bytearray | None]"
) -> Iterator[_Piece]:
    for begin in range(0, source.size, _WINDOW):
        window = (begin, min(_WINDOW, source.size - begin))
        whole = wanted.within(source, window)
        source.trim(_gaps(window, whole))
        extents, zeroes = _without_zeroes(source, whole)
        if not wanted.full:  # else all that is not sent reads as zeroes
            yield from (_Piece(number, batch) for batch in _zero_batches(zeroes))
        behind = begin
        for batch in wire.batches(extents):
            buffer = free.get()
            if buffer is None:
                raise _Enough
            content = memoryview(buffer)[: sum(length for _, length in batch)]
            source.read(batch, content)
            yield _Piece(number, batch, content, buffer)
            end = sum(batch[-1]) // _CLUSTER * _CLUSTER
            if end - behind >= _BEHIND:
                source.trim([(behind, end - behind)])
                behind = end
        source.trim([(behind, sum(window) - behind)])  # what is still to be sent was read


def _gaps(window: Extent, extents: list[Extent]) -> Iterator[Extent]:
    """What lies between extents, where it is worth a request."""
    at = window[0]
    for offset, length in [*extents, (sum(window), 0)]:
        begin, end = -(-at // _CLUSTER) * _CLUSTER, offset // _CLUSTER * _CLUSTER
        if end - begin >= _WIDE:
            yield begin, end - begin
        at = offset + length


def _without_zeroes(source: Source, extents: list[Extent]) -> tuple[list[Extent], list[Extent]]:
    """Extents that have content, and those that QEMU knows to read as zeroes, of wide ones."""
    content: list[Extent] = []
    zeroes: list[Extent] = []
    for offset, length in extents:
        if length < _WIDE:
            content.append((offset, length))
            continue
        at = offset
        for each in source.content(offset, length):
            if each[0] > at:
                zeroes.append((at, each[0] - at))
            content.append(each)
            at = sum(each)
        if offset + length > at:
            zeroes.append((at, offset + length - at))
    return content, zeroes


def _zero_batches(extents: list[Extent]) -> Iterator[list[Extent]]:
    cut = [
        (at, min(_LONGEST_ZERO, offset + length - at))
        for offset, length in extents
        for at in range(offset, offset + length, _LONGEST_ZERO)
    ]
    for first in range(0, len(cut), wire.MOST_EXTENTS):
        yield cut[first : first + wire.MOST_EXTENTS]


def _apart(piece: _Piece) -> tuple[_Piece, _Piece]:
    """What of a piece has content, and what is all zeroes."""
    if piece.content is None:
        return _Piece(piece.disk, []), piece
    kept: list[memoryview] = []
    extents: tuple[list[Extent], list[Extent]] = [], []
    at = 0
    for extent in piece.extents:
        part = piece.content[at : at + extent[1]]
        at += extent[1]
        zero = not part[0] and not part[-1] and bytes(part) == _ZEROES[: len(part)]
        extents[zero].append(extent)
        if not zero:
            kept.append(part)
    if not extents[1]:
        return piece, _Piece(piece.disk, [])
    return _Piece(piece.disk, extents[0], memoryview(b"".join(kept))), _Piece(piece.disk, extents[1])
