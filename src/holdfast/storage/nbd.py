"""Writing to an NBD export over a UNIX socket (the NBD protocol, "Fixed newstyle negotiation").

Only what a volume's writer needs: one request at a time, to a server that this daemon started.
"""

import asyncio
import struct
from pathlib import Path
from typing import Self

from holdfast.spec.errors import Failed
from holdfast.spec.units import MIB

_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
_REQUEST_MAGIC, _SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO = 7
_ACKNOWLEDGED, _INFO = 1, 3
_INFO_EXPORT = 0
_WRITE, _DISCONNECT, _FLUSH, _WRITE_ZEROES = 1, 2, 3, 6
_NO_SPACE = 28
LONGEST = 8 * MIB
"""Bytes of one write."""
_LONGEST_ZEROES = 1024 * MIB


class NbdFailed(Failed):
    id = "nbd-failed"


class NbdNoRoom(Failed):
    id = "nbd-no-room"


class NbdWriter:
    """One connection. `size`: bytes of the export."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> None:
        self._reader = reader
        self._writer = writer
        self._cookie = 0
        self.size = size

    @classmethod
    async def connect(cls, socket: Path, export: str) -> Self:
        """Raises NbdFailed."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(socket))
        except OSError as error:
            raise _failed(f"no connection: {error}") from error
        try:
            return cls(reader, writer, await _negotiate(reader, writer, export.encode()))
        except (OSError, EOFError) as error:
            writer.close()
            raise _failed(str(error)) from error
        except BaseException:
            writer.close()
            raise

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Raises NbdFailed, NbdNoRoom."""
        view = memoryview(data)
        for at in range(0, len(view), LONGEST):
            part = view[at : at + LONGEST]
            await self._ask(_WRITE, offset + at, len(part), part)

    async def zero(self, offset: int, length: int) -> None:
        """Raises NbdFailed, NbdNoRoom."""
        for at in range(0, length, _LONGEST_ZEROES):
            await self._ask(_WRITE_ZEROES, offset + at, min(_LONGEST_ZEROES, length - at))

    async def flush(self) -> None:
        """Returns once all that was written is on stable storage. Raises NbdFailed, NbdNoRoom."""
        await self._ask(_FLUSH, 0, 0)

    async def close(self) -> None:
        try:
            self._writer.write(_request(_DISCONNECT, 0, 0, 0))
            self._writer.close()
            await self._writer.wait_closed()
        except OSError:
            pass  # the server is gone already

    async def _ask(self, kind: int, offset: int, length: int, data: memoryview | None = None) -> None:
        self._cookie += 1
        try:
            self._writer.write(_request(kind, self._cookie, offset, length))
            if data is not None:
                self._writer.write(data)
            await self._writer.drain()
            magic, error, cookie = struct.unpack(">IIQ", await self._reader.readexactly(16))
        except (OSError, EOFError) as failure:
            raise _failed("the connection ended") from failure
        if (magic, cookie) != (_SIMPLE_REPLY_MAGIC, self._cookie):
            raise _failed("an answer to something else")
        if error == _NO_SPACE:
            raise NbdNoRoom("the volume can grow no more", value=offset, cure="Free some space there.")
        if error:
            raise _failed(f"error {error} (errno) at byte {offset}")


def _request(kind: int, cookie: int, offset: int, length: int) -> bytes:
    return struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, kind, cookie, offset, length)


async def _negotiate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, export: bytes) -> int:
    """The export's size."""
    magic, option, flags = struct.unpack(">QQH", await reader.readexactly(18))
    if (magic, option) != (_MAGIC, _OPTION_MAGIC) or not flags & _FIXED_NEWSTYLE:
        raise _failed("no NBD server")
    writer.write(struct.pack(">I", _FIXED_NEWSTYLE | (flags & _NO_ZEROES)))
    asked = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
    writer.write(struct.pack(">QII", _OPTION_MAGIC, _GO, len(asked)) + asked)
    await writer.drain()
    size: int | None = None
    while True:
        magic, _, kind, length = struct.unpack(">QIII", await reader.readexactly(20))
        if magic != _REPLY_MAGIC or length > 65536:
            raise _failed("an answer that is none")
        data = await reader.readexactly(length)
        if kind == _INFO and len(data) >= 12 and int.from_bytes(data[:2]) == _INFO_EXPORT:
            size = int.from_bytes(data[2:10])
        elif kind == _ACKNOWLEDGED and size is not None:
            return size
        elif kind != _INFO:
            raise _failed(f"the export was refused ({kind:#x})")


def _failed(why: str) -> NbdFailed:
    return NbdFailed(f"the volume could not be written: {why}", value=why, cure="Look in the daemon's log.")
