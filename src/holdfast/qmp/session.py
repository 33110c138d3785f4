"""One connection to a QEMU's monitor. The library `qemu.qmp` speaks the protocol.

Events are buffered from the moment of the connection, so that none between connecting and the
first look is missed. A session costs nothing while QEMU says nothing: two tasks that wait.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)
from qemu.qmp.qmp_client import GreetingError, NegotiationError

from holdfast.qmp.errors import QmpLost, QmpRefused, QmpTimedOut

_MOST_WAITING = 10_000  # events nobody has looked at; a guest can cause many, such as resets
_LARGEST_MESSAGE = 16 * 1024 * 1024  # bytes; query-qmp-schema answers with about 300 KiB
_LATE_ANSWERS = 3  # connections on which something else than a greeting comes first
_GOODBYE = 2.0  # seconds that a QEMU that reads nothing more can hold up a close


class Listener:
    """Events of some names, from its opening on; all events where no name is given. One consumer.

    Where nobody takes them, the oldest are dropped.
    """

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_MOST_WAITING)
        self._changed = asyncio.Event()
        self._lost = False

    def add(self, event: dict[str, Any]) -> None:
        self._waiting.append(event)
        self._changed.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._lost = True
        self._changed.set()

    async def take(self) -> dict[str, Any] | None:
        """The next event; None once all were taken and the monitor is lost."""
        while not self._waiting and not self._lost:
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft() if self._waiting else None

    async def get(self, limit: float) -> dict[str, Any]:
        """The next event within `limit` seconds, as QEMU sent it (`event`, `data`, `timestamp`).

        Raises:
            QmpTimedOut: none came in time.
            QmpLost: the monitor was lost and nothing is left.
        """
        try:
            async with asyncio.timeout(limit):
                event = await self.take()
        except TimeoutError as error:
            raise QmpTimedOut(f"no event came within {limit:g} seconds") from error
        if event is None:
            raise QmpLost("QEMU's monitor was lost while an event was awaited")
        return event


class _Ear(EventListener):
    """What the library hands events to; its own kind keeps every one for ever, as a history."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.listener = Listener()

    async def put(self, event: Message) -> None:
        if self.accept(event):
            self.listener.add(dict(event))


class QmpSession:
    """One monitor. Made by `connect`; `lost` is set once it is of no more use."""

    def __init__(self, connection: socket.socket) -> None:
        self.lost = asyncio.Event()
        self._connection = connection
        self._client = QMPClient("holdfast", _LARGEST_MESSAGE)
        # The library's own listener to all events keeps them for ever.
        self._client.events.event_filter = lambda _: False
        self._ears: set[_Ear] = set()
        self._everything = self._listen(()).listener
        self._descriptors = asyncio.Lock()
        self.node_list = asyncio.Lock()
        """Held while all block nodes are listed, and from the end of a job on them until it is dismissed."""
        self.jobs_end_with_us = False
        """No job's end from before this session is left."""
        self.block_graph = asyncio.Lock()
        """Held while somebody looks at which block nodes stand on which and changes that, or begins a job."""
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, path: Path, limit: float = 30.0) -> "QmpSession":
        """Connect to the UNIX socket at `path` and negotiate within `limit` seconds.

        Raises:
            QmpLost: nobody listens there, or it ended or spoke no QMP before the greeting.
            QmpTimedOut: it did not greet in time.
        """
        try:
            async with asyncio.timeout(limit):
                session = await cls._greeted(path)
        except TimeoutError as error:
            raise QmpTimedOut(
                f"QEMU's monitor did not greet within {limit:g} seconds", value=str(path)
            ) from error
        except (QMPError, OSError, EOFError) as error:
            raise QmpLost("QEMU's monitor cannot be reached", value=str(path)) from error
        session._watch = asyncio.create_task(session._watch_connection())
        return session

    @classmethod
    async def _greeted(cls, path: Path) -> "QmpSession":
        for _ in range(_LATE_ANSWERS):
            try:
                return await cls._opened(path)
            except ConnectError as error:
                # What QEMU had to say to whoever was connected before may come first.
                if not isinstance(error.exc, GreetingError | NegotiationError):
                    raise
        return await cls._opened(path)

    @classmethod
    async def _opened(cls, path: Path) -> "QmpSession":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        session = cls(connection)
        try:
            await asyncio.get_running_loop().sock_connect(connection, str(path))
            await session._client.connect(connection)
        finally:
            if session._client.runstate is not Runstate.RUNNING:
                connection.close()
        return session

    async def _watch_connection(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self._end()

    def _listen(self, names: tuple[str, ...]) -> _Ear:
        ear = _Ear(names)
        self._client.register_listener(ear)
        self._ears.add(ear)
        if self.lost.is_set():
            ear.listener.end()
        return ear

    def _end(self) -> None:
        self.lost.set()
        for ear in self._ears:
            ear.listener.end()

    async def execute(
        self, command: str, arguments: dict[str, Any] | None = None, limit: float = 30.0
    ) -> Any:
        """Run one command and return QEMU's answer to it.

        Raises:
            QmpRefused: QEMU answered with an error; its class and text are in the detail.
            QmpLost: the monitor was lost before the answer; whether the command ran is not known.
            QmpTimedOut: no answer within `limit` seconds; QEMU may still carry it out.
        """
        try:
            async with asyncio.timeout(limit):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise QmpRefused(
                f"QEMU refused {command}: {error}",
                value=command,
                detail={"class": error.error_class, "desc": str(error)},
            ) from error
        except TimeoutError as error:
            raise QmpTimedOut(
                f"QEMU did not answer {command} within {limit:g} seconds", value=command
            ) from error
        except (ExecInterruptedError, StateError, QMPError, OSError, EOFError) as error:
            raise QmpLost(f"QEMU's monitor was lost during {command}", value=command) from error

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Every event since the connection, in order; ends when the connection is lost. One consumer."""
        while (event := await self._everything.take()) is not None:
            yield event

    @contextlib.asynccontextmanager
    async def listen(self, *names: str) -> AsyncIterator[Listener]:
        """Listen from now on, so that no event of a command sent inside is missed."""
        ear = self._listen(names)
        try:
            yield ear.listener
        finally:
            self._ears.discard(ear)
            self._client.remove_listener(ear)

    async def send_fd(self, fd: int, name: str, limit: float = 30.0) -> None:
        """Give QEMU a copy of a descriptor under a name (`getfd`, SCM_RIGHTS); ours stays open.

        A descriptor that was there under that name is closed. Raises as `execute` does.
        """
        await self._hand_over(fd, "getfd", {"fdname": name}, limit)

    async def add_to_set(self, fd: int, number: int, limit: float = 30.0) -> None:
        """Give QEMU a copy of a descriptor as `/dev/fdset/<number>` (`add-fd`); ours stays open.

        Raises as `execute` does.
        """
        await self._hand_over(fd, "add-fd", {"fdset-id": number}, limit)

    async def _hand_over(self, fd: int, command: str, arguments: dict[str, Any], limit: float) -> None:
        # QEMU keeps only the descriptor that came last until a command asks for it.
        async with self._descriptors:
            try:
                self._client.send_fd_scm(fd)
            except (StateError, OSError) as error:
                raise QmpLost("QEMU's monitor was lost while a file was handed over") from error
            await self.execute(command, arguments, limit)

    async def close(self) -> None:
        """Let go of the monitor; QEMU runs on. May be called twice."""
        if self._watch:
            self._watch.cancel()
        self._end()
        try:
            async with asyncio.timeout(_GOODBYE):
                await self._client.disconnect()
        except Exception:  # the library raises again whatever ended the connection
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
