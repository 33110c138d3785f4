"""All of a machine at one instant: the guest stands still while something is done, for as short as may be.

How long it stood still is measured by QEMU's own clock: between the time stamps of its events `STOP` and
`RESUME` (qapi/run-state.json). What happens, the guest goes on afterwards, unless it did not run before.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from holdfast.machine.disk_layers import DiskLayers
from holdfast.machine.disk_snapshot import DiskSnapshot
from holdfast.machine.memory_stream import MemoryStream, Progress
from holdfast.qmp.errors import QmpLost, QmpRefused, QmpTimedOut
from holdfast.qmp.session import Listener, QmpSession

_EVENT_SECONDS = 1.0
_ENDED = ("shutdown", "internal-error", "guest-panicked")
"""States in which a guest must be reset before it may go on."""


@dataclass
class Stall:
    """How long the guest stood still."""

    seconds: float | None = None
    """None: it did not run, or that is not known."""


class Instant:
    """The instants of one QEMU. `runs`: the guest runs now, and is to run afterwards."""

    def __init__(
        self, session: QmpSession, memory: MemoryStream, layers: DiskLayers, snapshot: DiskSnapshot
    ) -> None:
        self._session = session
        self._memory = memory
        self._layers = layers
        self._snapshot = snapshot

    async def of_disks(
        self, tops: Mapping[str, str], copy: Callable[[], Awaitable[None]] | None, *, runs: bool
    ) -> Stall:
        """Switch layers (new name by old name), and `copy` what else belongs to that instant.

        QEMU takes its commands in their order, so it is told all of them without waiting for an answer, but
        where there is something to copy. Nobody is shown the disks meanwhile, as in `of_work`.

        Raises:
            QmpRefused, as an ExceptionGroup: nothing was switched.
        """
        alone, still = self._snapshot.between_cycles(), self._still(runs)
        async with alone, still as stall, asyncio.TaskGroup() as group:
            stop = group.create_task(self._session.execute("stop"))
            group.create_task(self._layers.switch(tops))
            if copy is not None:
                await stop
                await copy()
            elif runs:
                group.create_task(self._session.execute("cont"))
        return stall

    async def of_work(self, work: Callable[[], Awaitable[None]], *, runs: bool) -> Stall:
        """Stop the guest, do the work, and let it go on; a cancellation waits until then.

        Nobody is shown the disks meanwhile: QEMU (10.0.2) waits for ever where nodes are put on top of others
        while a reader is on its way in. A cycle that is under way may end first, while the guest still runs.
        Raises what `work` raises.
        """

        async def whole() -> Stall:
            async with self._snapshot.between_cycles(), self._still(runs) as stall:
                await self._session.execute("stop")
                await work()
            return stall

        task = asyncio.ensure_future(whole())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise

    async def with_memory(
        self, path: Path, work: Callable[[], Awaitable[None]], progress: Progress, *, runs: bool
    ) -> Stall:
        """Write the memory to `path` and do the work at the instant that it is of. Raises as `stream`.

        QEMU gives up its disks for that instant, which it cannot while they are shown to readers.
        """
        async with contextlib.AsyncExitStack() as barred, self._still(runs) as stall:

            async def at_instant() -> None:
                await barred.enter_async_context(self._snapshot.barred())
                await work()

            await self._memory.stream(path, at_instant, progress)
        if not runs:
            await self.be_paused()
        return stall

    async def be_paused(self) -> None:
        """Bring a machine that has written its memory out back to where it was: paused, and owning its disks.

        QEMU gives them back to a guest that goes on only, so it does, for as long as two commands are apart.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._session.execute("cont"))
            group.create_task(self._session.execute("stop"))

    @asynccontextmanager
    async def _still(self, runs: bool) -> AsyncIterator[Stall]:
        stall = Stall()
        async with self._session.listen("STOP", "RESUME") as listener:
            try:
                yield stall
            finally:
                if runs:
                    await asyncio.shield(self._go_on())
            if runs:
                stall.seconds = await _measured(listener)

    async def _go_on(self) -> None:
        """It may have ended, or its guest powered off meanwhile: both are reported by themselves."""
        with contextlib.suppress(QmpLost):
            try:
                await self._session.execute("cont")
            except QmpRefused:
                if (await self._session.execute("query-status"))["status"] not in _ENDED:
                    raise


async def _measured(listener: Listener) -> float | None:
    stopped: float | None = None
    try:
        while True:
            event = await listener.get(_EVENT_SECONDS)
            stamp = event["timestamp"]
            at = float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
            if event["event"] == "STOP":
                stopped = at
            elif stopped is not None:
                return at - stopped
    except (QmpTimedOut, QmpLost):
        return None
