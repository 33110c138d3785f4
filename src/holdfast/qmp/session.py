"""One connection to a QEMU's monitor. The library `qemu.qmp` speaks the protocol."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, EventListener, ExecInterruptedError, ExecuteError, QMPClient, StateError

from holdfast.qmp.errors import QmpLost, QmpRefused, QmpTimedOut


class QmpSession:
    def __init__(self, client: QMPClient, limit: float) -> None:
        self._client = client
        self._limit = limit

    @classmethod
    async def connect(cls, path: Path, limit: float = 30.0) -> "QmpSession":
        """Connect and negotiate within `limit` seconds. Raises QmpLost or QmpTimedOut."""
        client = QMPClient("holdfast")
        try:
            async with asyncio.timeout(limit):
                await client.connect(str(path))
        except TimeoutError as error:
            raise QmpTimedOut(f"QEMU's monitor did not greet within {limit:g} seconds") from error
        except (ConnectError, OSError) as error:
            raise QmpLost("QEMU's monitor cannot be reached", value=str(path)) from error
        return cls(client, limit)

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command; `_` in an argument's name stands for `-`.

        Raises QmpRefused, QmpLost or QmpTimedOut.
        """
        wire = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            async with asyncio.timeout(self._limit):
                return await self._client.execute(command, wire)
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

    @contextlib.contextmanager
    def events(self, *names: str) -> Iterator[EventListener]:
        """Listen from now on, so that no event of a command sent inside is missed. No name: all."""
        with self._client.listener(names or None) as listener:
            yield listener

    def listen(self) -> EventListener:
        """A listener for the whole life of this session."""
        listener = EventListener()
        self._client.register_listener(listener)
        return listener

    async def send_fd(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor under a name (`getfd`, SCM_RIGHTS)."""
        self._client.send_fd_scm(fd)
        await self.execute("getfd", fdname=name)

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await self._client.disconnect()
