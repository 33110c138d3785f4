"""Reading what changed from an NBD export of QEMU's, over a UNIX socket (the NBD protocol, doc/proto.md).

Everything here blocks, for threads of a worker process. Two connections: one asks which extents there are,
by structured replies, the other reads them, many requests at once and by simple replies, whose headers cost
least. QEMU is not trusted more than its guest: what it answers is bounded.
"""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from holdfast.replication.wire import Extent
from holdfast.spec.errors import Failed
from holdfast.spec.units import GIB, KIB, MIB

_MAGIC, _OPTION_MAGIC, _OPTION_REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
_REQUEST_MAGIC, _SIMPLE_MAGIC, _CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_SEND_TRIM = 1 << 5  # of an export
_GO, _STRUCTURED, _SET_CONTEXT = 7, 8, 10
_ACKNOWLEDGED, _INFO, _CONTEXT = 1, 3, 4
_READ, _DISCONNECT, _TRIM, _BLOCK_STATUS = 0, 2, 4, 7
_DONE, _STATUS_CHUNK = 1, 5
_ZERO = 2  # of base:allocation
_ALLOCATION = "base:allocation"
_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")

_LIMIT = 60.0  # seconds that QEMU may say nothing
_LARGEST_ANSWER = 8 * MIB
_MOST_STATUS = 2 * GIB  # bytes asked about at once
_MOST_TRIM = 1 * GIB
_BLOCK = 4 * KIB
_AT_ONCE = 256  # requests without content
_BUFFER = 256 * KIB
_SOCKET_BUFFER = 2 * MIB


class SourceLost(Failed):
    """The export, or the instant that it shows, is gone: QEMU ended it, or could not keep it up."""

    id = "replica-source-lost"


class Source:
    """One disk at one instant. Used by one thread; `size`: bytes.

    Args:
        bitmap: name of the bitmap that the export shows; None: only what is allocated can be asked.
    """

    def __init__(self, path: Path, export: str, bitmap: str | None) -> None:
        context = _ALLOCATION if bitmap is None else f"qemu:dirty-bitmap:{bitmap}"
        with contextlib.ExitStack() as opened, _reported():
            self._contexts = opened.enter_context(_Connection.open(path, export, context))
            self._zeroes = (
                self._contexts
                if bitmap is None
                else opened.enter_context(_Connection.open(path, export, _ALLOCATION))
            )
            self._data = opened.enter_context(_Connection.open(path, export, None))
            self.size = self._data.size
            self._opened = opened.pop_all()

    def changed(self, offset: int, length: int) -> list[Extent]:
        """Extents of a part that are set in the bitmap. Raises SourceLost."""
        with _reported():
            return _joined(self._contexts.statuses(offset, length), lambda flags: bool(flags & 1))

    def content(self, offset: int, length: int) -> list[Extent]:
        """Extents of a part that may not read as zeroes, in whole blocks of 4 KiB. Raises SourceLost."""
        with _reported():
            found = _joined(self._zeroes.statuses(offset, length), lambda flags: not flags & _ZERO)
        return in_blocks(found, offset + length)

    def read(self, extents: Sequence[Extent], target: memoryview) -> None:
        """Fill `target` with the bytes of all extents, in their order. Raises SourceLost."""
        with _reported():
            self._data.read(extents, target)

    def trim(self, extents: Iterable[Extent]) -> None:
        """Say which parts will not be read: they are no longer kept up while the guest writes.

        Nothing happens where nobody writes, and the export is read-only. Raises SourceLost.
        """
        if not self._data.trims:
            return
        cut = [
            (at, min(_MOST_TRIM, offset + length - at))
            for offset, length in extents
            for at in range(offset, offset + length, _MOST_TRIM)
        ]
        with _reported():
            for first in range(0, len(cut), _AT_ONCE):
                self._data.ask(_TRIM, cut[first : first + _AT_ONCE])

    def close(self) -> None:
        """May be called twice."""
        self._opened.close()


class _Connection:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = memoryview(bytearray(_BUFFER))
        self._begin = self._end = 0  # of what was received and is not taken yet
        self.size = 0
        self.trims = False

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, export: str, context: str | None) -> Iterator[Self]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_LIMIT)
            for which in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                connection.setsockopt(socket.SOL_SOCKET, which, _SOCKET_BUFFER)
            connection.connect(str(path))
            made = cls(connection)
            made._negotiate(export.encode(), context)
            yield made
            with contextlib.suppress(OSError):
                connection.sendall(_request(_DISCONNECT, 0, 0, 0))
        finally:
            connection.close()

    def read(self, extents: Sequence[Extent], target: memoryview) -> None:
        places, at = [], 0
        for _, length in extents:
            places.append(at)
            at += length
        self._socket.sendall(
            b"".join(_request(_READ, cookie, *extent) for cookie, extent in enumerate(extents))
        )
        for _ in extents:
            cookie = self._simple(len(extents))
            place = places[cookie]
            self._take(target[place : place + extents[cookie][1]])

    def ask(self, kind: int, extents: Sequence[Extent]) -> None:
        self._socket.sendall(b"".join(_request(kind, 0, *extent) for extent in extents))
        for _ in extents:
            self._simple(1)

    def statuses(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Offset, length and flags of every extent, in their order."""
        end = offset + length
        while offset < end:
            asked = min(end - offset, _MOST_STATUS)
            self._socket.sendall(_request(_BLOCK_STATUS, 1, offset, asked))
            for found, flags in self._status():
                found = min(found, end - offset)
                yield offset, found, flags
                offset += found
                if offset == end:
                    break

    def _status(self) -> list[tuple[int, int]]:
        """The one chunk of status that the one context gets; at least one extent that is not empty."""
        found: list[tuple[int, int]] = []
        while True:
            magic, flags, kind, _, length = _CHUNK.unpack(self._exactly(_CHUNK.size))
            if magic != _CHUNK_MAGIC or length > _LARGEST_ANSWER:
                raise _lost("an answer that is none")
            data = self._exactly(length)
            if kind == _STATUS_CHUNK and length % 8 == 4:
                found = list(struct.iter_unpack(">II", data[4:]))
            elif kind >> 15:
                raise _lost(f"error {int.from_bytes(data[:4])} (errno)")
            if flags & _DONE:
                break
        if not found or not all(length for length, _ in found):
            raise _lost("an answer that says nothing")
        return found

    def _simple(self, most: int) -> int:
        """The cookie of the next answer, which is of success."""
        magic, error, cookie = _SIMPLE.unpack(self._exactly(_SIMPLE.size))
        if magic != _SIMPLE_MAGIC or cookie >= most:
            raise _lost("an answer that is none")
        if error:
            raise _lost(f"error {error} (errno)")
        return int(cookie)

    def _exactly(self, count: int) -> bytes:
        if self._end - self._begin >= count:
            self._begin += count
            return bytes(self._buffer[self._begin - count : self._begin])
        data = bytearray(count)
        self._take(memoryview(data))
        return bytes(data)

    def _take(self, target: memoryview) -> None:
        while target:
            if self._begin == self._end and len(target) < _BUFFER:
                self._begin, self._end = 0, self._some(self._buffer)
            if self._begin == self._end:
                target = target[self._some(target) :]
                continue
            count = min(len(target), self._end - self._begin)
            target[:count] = self._buffer[self._begin : self._begin + count]
            self._begin += count
            target = target[count:]

    def _some(self, target: memoryview) -> int:
        count = self._socket.recv_into(target)
        if not count:
            raise EOFError("QEMU closed the connection")
        return count

    def _negotiate(self, export: bytes, context: str | None) -> None:
        magic, option, flags = struct.unpack(">QQH", self._exactly(18))
        if (magic, option) != (_MAGIC, _OPTION_MAGIC) or not flags & _FIXED_NEWSTYLE:
            raise _lost("no NBD server")
        self._socket.sendall(struct.pack(">I", _FIXED_NEWSTYLE | (flags & _NO_ZEROES)))
        named = struct.pack(">I", len(export)) + export
        if context is not None:
            wanted = context.encode()
            self._option(_STRUCTURED, b"")
            count = struct.pack(">II", 1, len(wanted))
            if not any(kind == _CONTEXT for kind, _ in self._option(_SET_CONTEXT, named + count + wanted)):
                raise _lost(f"no context {context}")
        for kind, data in self._option(_GO, named + b"\0\0"):
            if kind == _INFO and data[:2] == b"\0\0" and len(data) >= 12:
                self.size = int.from_bytes(data[2:10])
                self.trims = bool(int.from_bytes(data[10:12]) & _SEND_TRIM)

    def _option(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        """What is answered before the acknowledgement."""
        self._socket.sendall(struct.pack(">QII", _OPTION_MAGIC, option, len(data)) + data)
        found: list[tuple[int, bytes]] = []
        while len(found) < 64:
            magic, answered, kind, length = struct.unpack(">QIII", self._exactly(20))
            if magic != _OPTION_REPLY_MAGIC or answered != option or length > _LARGEST_ANSWER:
                raise _lost("an answer that is none")
            said = self._exactly(length)
            if kind == _ACKNOWLEDGED:
                return found
            if kind >> 31:
                raise _lost(f"the export was refused ({kind:#x})")
            found.append((kind, said))
        raise _lost("an answer without an end")


def in_blocks(extents: Iterable[Extent], end: int) -> list[Extent]:
    """Extents made wider until they are of whole blocks or reach the end, and joined where they touch."""
    found: list[Extent] = []
    for offset, length in extents:
        begin = offset // _BLOCK * _BLOCK
        until = min(-(-(offset + length) // _BLOCK) * _BLOCK, end)
        if found and begin <= sum(found[-1]):
            begin = found.pop()[0]
        found.append((begin, until - begin))
    return found


def _request(kind: int, cookie: int, offset: int, length: int) -> bytes:
    return _REQUEST.pack(_REQUEST_MAGIC, 0, kind, cookie, offset, length)


def _joined(statuses: Iterable[tuple[int, int, int]], wanted: Callable[[int], bool]) -> list[Extent]:
    found: list[Extent] = []
    end = -1
    for offset, length, flags in statuses:
        if not wanted(flags):
            continue
        if offset == end:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((offset, length))
        end = offset + length
    return found


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, struct.error) as error:
        raise _lost(str(error) or type(error).__name__) from error


def _lost(why: str) -> SourceLost:
    return SourceLost(
        f"a disk could not be read at the instant that was captured: {why}",
        value=why,
        cure="The next cycle tries again. If it happens often, see that the host's disk has space left.",
    )
