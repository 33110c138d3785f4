"""The channel to a guest's agent: bytes in, lines out, all of it bounded.

    guest ──bytes──▶ LineClipper ──lines──▶ AgentChannel ──▶ one command at a time

The guest is hostile: it may send anything, at any length, at any time. Long strings are cut while
they arrive, so memory stays bounded even where an answer carries a program's whole output. What
comes while nobody has asked ends the connection.
"""

import asyncio
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from holdfast.qmp.errors import AgentLost, AgentNonsense

LONGEST_STRING = 4 * (1024 * 1024 // 3 + 2)
"""Characters that are kept of a string: base64 of a little more than a mebibyte, in whole groups."""
_LONGEST_LINE = 8 * 1024 * 1024  # bytes that are kept
_MOST_RECEIVED = 64 * 1024 * 1024  # bytes for one command; the agent holds back output beyond 2 x 16 MiB
_DELIMITER = 0xFF
_PLAIN_END = re.compile(rb'["\n\xff]')
_STRING_END = re.compile(rb'["\\\n\xff]')


@dataclass(frozen=True)
class Line:
    text: bytes
    """Without its end."""
    delimited: bool
    """The byte 0xFF stood before it: an answer to guest-sync-delimited."""


class LineClipper:
    """Cuts a stream into lines of JSON and each long string in them to LONGEST_STRING.

    What stood on a line before a byte 0xFF is dropped (QEMU, qga/qapi-schema.json, guest-sync-delimited).
    """

    def __init__(self) -> None:
        self._begin(delimited=False)

    def _begin(self, delimited: bool) -> None:
        self._kept = bytearray()
        self._delimited = delimited
        self._string: int | None = None  # characters so far of the string we are in
        self._escaped = False

    @property
    def idle(self) -> bool:
        """Nothing of a line has come yet."""
        return not self._kept and not self._delimited

    def feed(self, data: bytes) -> list[Line]:
        """Lines that are now whole. Raises AgentNonsense where one is too long."""
        lines: list[Line] = []
        position = 0
        while position < len(data):
            escaped, self._escaped = self._escaped, False
            if escaped and data[position] not in b"\n\xff":
                self._keep(data[position : position + 1])
                position += 1
                continue
            stop = (_PLAIN_END if self._string is None else _STRING_END).search(data, position)
            end = stop.start() if stop else len(data)
            self._keep(data[position:end])
            if stop:
                self._stop_at(data[end], lines)
            position = end + 1
        return lines

    def _keep(self, run: bytes) -> None:
        if self._string is not None:
            room = max(0, LONGEST_STRING - self._string)
            self._string += len(run)
            run = run[:room]
        self._kept += run
        if len(self._kept) > _LONGEST_LINE:
            raise AgentNonsense("the guest agent's answer is too long", value=_LONGEST_LINE)

    def _stop_at(self, byte: int, lines: list[Line]) -> None:
        if byte == _DELIMITER:
            self._begin(delimited=True)
        elif byte == ord("\n"):
            if self._kept:
                lines.append(Line(bytes(self._kept), self._delimited))
            self._begin(delimited=False)
        elif byte == ord('"'):
            self._kept.append(byte)
            self._string = 0 if self._string is None else None
        elif self._string is not None and self._string + 2 <= LONGEST_STRING:
            self._keep(b"\\")
            self._escaped = True
        else:
            # A cut through an escape would leave half of it: the rest of the string goes.
            self._string = LONGEST_STRING
            self._escaped = True


class AgentChannel(asyncio.Protocol):
    """One connection to the agent's socket. Made by `open`; `lost` once it is of no more use."""

    def __init__(self) -> None:
        self._clipper = LineClipper()
        self._lines: deque[Line] = deque()
        self._changed = asyncio.Event()
        self._received = 0
        self._asking = False
        self._failure: AgentNonsense | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, path: Path) -> "AgentChannel":
        """Connect to the UNIX socket at `path`. Raises AgentLost where nobody serves it."""
        try:
            loop = asyncio.get_running_loop()
            _, channel = await loop.create_unix_connection(cls, str(path))
        except OSError as error:
            raise AgentLost(
                "the channel to the guest agent does not open",
                value=str(path),
                cure="See that the VM runs.",
            ) from error
        return channel

    @property
    def lost(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def begin(self) -> None:
        """A command begins: what comes from now on is asked for."""
        self._asking = True
        self._received = 0

    def end(self) -> None:
        """The command has its answer."""
        self._asking = False
        if self._lines or not self._clipper.idle:
            self.close()

    def send(self, data: bytes) -> None:
        """Raises AgentLost."""
        if self._transport is None or self.lost:
            raise AgentLost("the channel to the guest agent was lost")
        self._transport.write(data)

    async def line(self) -> Line:
        """The next line. Raises AgentLost, AgentNonsense."""
        while not self._lines:
            if self._failure is not None:
                raise self._failure
            if self.lost:
                raise AgentLost("the channel to the guest agent was lost before the answer")
            self._changed.clear()
            await self._changed.wait()
        return self._lines.popleft()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (a stream's always is)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if not self._asking:
            self.close()
            return
        try:
            if self._received > _MOST_RECEIVED:
                raise AgentNonsense("the guest agent's answer is too long", value=_MOST_RECEIVED)
            self._lines += self._clipper.feed(data)
        except AgentNonsense as error:
            self._failure = error
            self.close()
        self._changed.set()
