"""One connection to a QEMU's monitor. The library `qemu.qmp` speaks the protocol.

Events are buffered from the moment of the connection, so that none between connecting and the
first look is missed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    QMPClient,
    Runstate,
    StateError,
)

from holdfast.qmp.errors import QmpLost, QmpRefused, QmpTimedOut

_FOREVER = 86400.0


class Listener:
    """Events of some names, from its opening on."""

    def __init__(self, listener: EventListener, session: "QmpSession") -> None:
        self._listener = listener
        self._session = session

    async def get(self, limit: float) -> dict[str, Any]:
        """The next event within `limit` seconds. Raises QmpTimedOut, or QmpLost where QEMU has ended."""
        waiting = asyncio.ensure_future(self._listener.get())
        lost = asyncio.ensure_future(self._session.lost.wait())
        try:
            done, _ = await asyncio.wait({waiting, lost}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if waiting in done:
                return dict(waiting.result())
            if lost in done:
                raise QmpLost("QEMU's monitor was lost while an event was awaited")
            raise QmpTimedOut(f"no event came within {limit:g} seconds")
        finally:
            waiting.cancel()
            lost.cancel()


class QmpSession:
    """One monitor. Made by `connect`; `lost` is set once it is of no more use."""

    def __init__(self, client: QMPClient, all_events: EventListener) -> None:
        self._client = client
        self._all_events = all_events
        self.lost = asyncio.Event()
        self._watch = asyncio.create_task(self._watch_connection())

    @classmethod
    async def connect(cls, path: Path, limit: float = 30.0) -> "QmpSession":
        """Connect and negotiate within `limit` seconds. Raises QmpLost or QmpTimedOut."""
        client = QMPClient("holdfast")
        listener = EventListener()
        client.register_listener(listener)
        try:
            async with asyncio.timeout(limit):
                await client.connect(str(path))
        except TimeoutError as error:
            with contextlib.suppress(Exception):
                await client.disconnect()
            raise QmpTimedOut(f"QEMU's monitor did not greet within {limit:g} seconds") from error
        except (ConnectError, OSError, EOFError) as error:
            raise QmpLost("QEMU's monitor cannot be reached", value=str(path)) from error
        return cls(client, listener)

    async def _watch_connection(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self.lost.set()

    async def execute(
        self, command: str, arguments: dict[str, Any] | None = None, limit: float = 30.0
    ) -> Any:
        """Run one command. Raises QmpRefused, QmpLost or QmpTimedOut."""
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
            raise QmpTimedOut(f"QEMU did not answer {command} in time", value=command) from error
        except (ExecInterruptedError, StateError, OSError, EOFError) as error:
            raise QmpLost(f"QEMU's monitor was lost during {command}", value=command) from error

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Every event since the connection, in order; ends when the connection is lost. One consumer."""
        everything = Listener(self._all_events, self)
        while True:
            try:
                yield await everything.get(_FOREVER)
            except QmpTimedOut:
                continue
            except QmpLost:
                for event in self._all_events.clear():
                    yield dict(event)
                return

    @contextlib.asynccontextmanager
    async def listen(self, *names: str) -> AsyncIterator[Listener]:
        """Listen from now on, so that no event of a command sent inside is missed."""
        with self._client.listener(names) as listener:
            yield Listener(listener, self)

    async def send_fd(self, fd: int, name: str) -> None:
        """Give QEMU a copy of a descriptor under a name (`getfd`, SCM_RIGHTS)."""
        self._client.send_fd_scm(fd)
        await self.execute("getfd", {"fdname": name})

    async def close(self) -> None:
        self._watch.cancel()
        self.lost.set()
        with contextlib.suppress(Exception):
            await self._client.disconnect()
