"""A held point shown as NBD exports over a UNIX socket, so that it is shipped as a VM's disks are.

The server's side of what `nbd.Source` asks for (the NBD protocol, doc/proto.md): fixed newstyle, read-only,
simple or structured replies, and questions about `base:allocation` and, where changes are known,
`qemu:dirty-bitmap:changes`. The socket is the daemon's own; whoever connects is the process that ships. What
cannot be read is an error to it, of which the reason stands in `failure`.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

from holdfast.replication.capture import CapturedDisk
from holdfast.replication.store.index import BLOCK
from holdfast.replication.store.point_reading import PointReading
from holdfast.spec.errors import HoldfastError
from holdfast.spec.units import MIB

BITMAP = "changes"
_ALLOCATION, _CHANGES = "base:allocation", f"qemu:dirty-bitmap:{BITMAP}"
_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
_REQUEST_MAGIC, _SIMPLE_MAGIC, _CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
_FLAGS = 1 | 2  # fixed newstyle, no zeroes behind the last option
_EXPORT_FLAGS = 1 | 2  # has flags, read-only
_ABORT, _GO, _STRUCTURED, _SET_CONTEXT = 2, 7, 8, 10
_ACKNOWLEDGED, _INFO, _CONTEXT, _UNSUPPORTED, _UNKNOWN = 1, 3, 4, 1 << 31 | 1, 1 << 31 | 6
_READ, _DISCONNECT, _BLOCK_STATUS = 0, 2, 7
_DONE, _DATA_CHUNK, _STATUS_CHUNK, _ERROR_CHUNK = 1, 1, 5, 1 << 15 | 1
_HOLE_ZERO, _DIRTY = 3, 1
_EIO, _EINVAL = 5, 22
_CONTEXT_ID = 1
_REQUEST = struct.Struct(">IHHQQI")
_LARGEST_OPTION = 64 * 1024
_LARGEST_READ = 32 * MIB
_PIECE = 1 * MIB
"""Bytes of which it is told whether they read as zeroes."""
_MOST_STATUS = 1 << 15
_WAITING = 64

Failed = Callable[[HoldfastError | OSError], None]


class PointExport:
    """Serves until it is closed; a thread for each connection."""

    def __init__(self, reading: PointReading, path: Path) -> None:
        """Raises OSError."""
        self._reading = reading
        self._path = path
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self.failure: HoldfastError | OSError | None = None
        """Why something could not be read."""
        path.unlink(missing_ok=True)
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._door.bind(str(path))
            path.chmod(0o600)
            self._door.listen(_WAITING)
        except OSError:
            self._door.close()
            raise
        threading.Thread(target=self._accept, name="point-export", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def disks(self) -> tuple[CapturedDisk, ...]:
        """All of the point's, as they are shown."""
        return tuple(
            CapturedDisk(
                id=disk,
                size=size,
                export=disk,
                since=self._reading.since(disk),
                bitmap=None if self._reading.since(disk) is None else BITMAP,
            )
            for disk, size in self._reading.head.disks.items()
        )

    def close(self) -> None:
        """Whoever reads is cut off."""
        with self._lock:
            self._closed = True
            for each in (self._door, *self._connections):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._door.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._door.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="point-reader", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError, EOFError, ValueError):  # the reader went, or is none
                _Connection(connection, self._reading, self._failed).serve()
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _failed(self, error: HoldfastError | OSError) -> None:
        self.failure = self.failure or error


class _Connection:
    def __init__(self, connection: socket.socket, reading: PointReading, failed: Failed) -> None:
        self._socket = connection
        self._reading = reading
        self._failed = failed
        self._disk = ""
        self._context = ""
        self._structured = False

    def serve(self) -> None:
        self._socket.sendall(struct.pack(">QQH", _MAGIC, _OPTION_MAGIC, _FLAGS))
        self._exactly(4)
        while not self._option():
            pass
        while self._request():
            pass

    def _option(self) -> bool:
        """Whether requests come from now on."""
        magic, option, length = struct.unpack(">QII", self._exactly(16))
        if magic != _OPTION_MAGIC or length > _LARGEST_OPTION:
            raise ValueError("no option")
        data = self._exactly(length)
        if option == _STRUCTURED:
            self._structured = True
        elif option == _SET_CONTEXT and self._structured:
            self._contexts(data)
        elif option == _GO:
            return self._go(data)
        else:
            self._reply(option, _UNSUPPORTED)
            return False
        self._reply(option, _ACKNOWLEDGED)
        return False

    def _contexts(self, data: bytes) -> None:
        (length,) = struct.unpack_from(">I", data)
        count, size = struct.unpack_from(">II", data, 4 + length)
        wanted = data[12 + length : 12 + length + size].decode()
        known = {_ALLOCATION} | ({_CHANGES} if self._reading.since(data[4 : 4 + length].decode()) else set())
        if count == 1 and wanted in known:
            self._context = wanted
            self._reply(_SET_CONTEXT, _CONTEXT, struct.pack(">I", _CONTEXT_ID) + wanted.encode())

    def _go(self, data: bytes) -> bool:
        (length,) = struct.unpack_from(">I", data)
        self._disk = data[4 : 4 + length].decode()
        size = self._reading.head.disks.get(self._disk)
        if size is None:
            self._reply(_GO, _UNKNOWN)
            return False
        self._reply(_GO, _INFO, struct.pack(">HQH", 0, size, _EXPORT_FLAGS))
        self._reply(_GO, _ACKNOWLEDGED)
        return True

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._socket.sendall(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)) + data)

    def _request(self) -> bool:
        """Whether more may come."""
        magic, _, kind, cookie, offset, length = _REQUEST.unpack(self._exactly(_REQUEST.size))
        size = self._reading.head.disks[self._disk]
        if magic != _REQUEST_MAGIC:
            raise ValueError("no request")
        if kind == _DISCONNECT:
            return False
        within = length and offset + length <= size
        try:
            if kind == _READ and within and length <= _LARGEST_READ:
                self._read(cookie, offset, length)
            elif kind == _BLOCK_STATUS and self._context and within:
                self._status(cookie, offset, length)
            else:
                self._error(cookie, _EINVAL)
        except (HoldfastError, OSError) as error:
            self._failed(error)
            self._error(cookie, _EIO)
        return True

    def _read(self, cookie: int, offset: int, length: int) -> None:
        data = self._reading.read(self._disk, offset, length)
        if self._structured:
            self._chunk(cookie, _DATA_CHUNK, struct.pack(">Q", offset) + data)
        else:
            self._simple(cookie, 0, data)

    def _simple(self, cookie: int, error: int, data: bytes = b"") -> None:
        self._socket.sendall(struct.pack(">IIQ", _SIMPLE_MAGIC, error, cookie) + data)

    def _error(self, cookie: int, error: int) -> None:
        if self._structured:
            self._chunk(cookie, _ERROR_CHUNK, struct.pack(">IH", error, 0))
        else:
            self._simple(cookie, error)

    def _chunk(self, cookie: int, kind: int, data: bytes) -> None:
        head = struct.pack(">IHHQI", _CHUNK_MAGIC, _DONE, kind, cookie, len(data))
        self._socket.sendall(head + data)

    def _status(self, cookie: int, offset: int, length: int) -> None:
        """Of as much from `offset` on as fits into one answer."""
        of = self._changes if self._context == _CHANGES else self._allocation
        found: list[tuple[int, int]] = []
        for size, flags in of(offset, length):
            if found and found[-1][1] == flags:
                found[-1] = (found[-1][0] + size, flags)
                continue
            if len(found) == _MOST_STATUS:
                break
            found.append((size, flags))
        extents = b"".join(struct.pack(">II", *each) for each in found)
        self._chunk(cookie, _STATUS_CHUNK, struct.pack(">I", _CONTEXT_ID) + extents)

    def _allocation(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = offset + length
        while offset < end:
            size = min(_PIECE - offset % _PIECE, end - offset)
            first = offset // BLOCK * BLOCK
            empty = self._reading.is_empty(self._disk, first, offset + size - first)
            yield size, _HOLE_ZERO if empty else 0
            offset += size

    def _changes(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        ranges, end = self._reading.changed(self._disk), offset + length
        at = int(np.searchsorted(ranges["block"] + ranges["count"], offset // BLOCK, side="right"))
        for begin, count in ranges[at:].tolist():
            first, until = max(offset, begin * BLOCK), min(end, (begin + count) * BLOCK)
            if first >= end:
                break
            if first > offset:
                yield first - offset, 0
            yield until - first, _DIRTY
            offset = until
        if offset < end:
            yield end - offset, 0

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)
