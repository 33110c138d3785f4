"""A guest that stands still because its storage is full or gone, until it can go on.

The truth is QEMU's: it waits with the request that failed. Nothing reports that a file system has
room again or that a file server is back, so while a VM waits its pools are looked at.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.catalog.events import EventLog
from holdfast.machine.running import RunningMachine
from holdfast.spec.errors import HoldfastError
from holdfast.spec.pool import LOCAL, PoolHealth
from holdfast.spec.vm import VmSpec, VmState
from holdfast.storage.pools.book import Pools
from holdfast.storage.pools.pool import ENOUGH
from holdfast.vm.records import VmRecord

_LOOK = 1.0  # seconds
_LONGEST_PAUSE = 30.0  # seconds before what failed again and again is tried once more
_ROW_SECONDS = 120.0  # attempts within it count as a row


@dataclass(frozen=True)
class Stall:
    """Why a guest stands still."""

    pools: Mapping[str | None, bool]
    """Pools that it waits for; True: for room, False: for the pool itself."""

    @property
    def event(self) -> str:
        return "vm.waits-for-space" if all(self.pools.values()) else "vm.waits-for-storage"

    @property
    def text(self) -> str:
        parts = [
            f"space in {_called(pool)}" if room else f"{_called(pool)}, whose storage failed"
            for pool, room in self.pools.items()
        ]
        return f"Waits for {' and '.join(parts)}; goes on by itself, and the guest sees no error"

    @property
    def data(self) -> dict[str, Any]:
        """Of its event."""
        return {"pools": [pool or LOCAL for pool in self.pools], "reason": self.text}

    async def over(self, pools: Pools) -> bool:
        """Whether another attempt is worth it: every pool is there, and has room where that was short."""
        for name, room in self.pools.items():
            try:
                state = await pools.of(name).state()
            except HoldfastError:
                return False
            if state.health is PoolHealth.VANISHED or (room and (state.free or 0) < ENOUGH):
                return False
        return True


class StallWatch:
    """Finds one VM stalled, and lets it on when its storage can be used again."""

    def __init__(
        self, pools: Pools, events: EventLog, enqueue: Callable[[Callable[[], Awaitable[None]]], None]
    ) -> None:
        """`enqueue` puts an action into the line of the VM's owner."""
        self.stall: Stall | None = None
        self._pools = pools
        self._events = events
        self._enqueue = enqueue
        self._task: asyncio.Task[None] | None = None
        self._attempts: list[float] = []

    async def look(self, machine: RunningMachine, record: VmRecord) -> Stall | None:
        """Ask QEMU; what it waits for is told by an event where the VM's state does not tell it."""
        try:
            disks = await machine.block_errors.stalled()
        except HoldfastError:  # it ends, which is reported by itself
            return self.stall
        if not disks:
            self.forget()
            return None
        stall = stall_of(record.running_spec or record.spec, disks)
        if stall != self.stall and record.state is not VmState.RUNNING:
            await self._events.emit(stall.event, record.name, {"id": record.id, **stall.data})
        self.stall = stall
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._go_on(machine))
        return stall

    def forget(self) -> None:
        """It goes on, or is not to go on by itself."""
        self.stall = None
        if self._task:
            self._task.cancel()
            self._task = None

    async def _go_on(self, machine: RunningMachine) -> None:
        """Where storage failed, each attempt makes the next one wait longer, for a defect may be lasting."""
        if self.stall and not all(self.stall.pools.values()):
            now = asyncio.get_running_loop().time()
            self._attempts = [each for each in self._attempts if now - each < _ROW_SECONDS] + [now]
            await asyncio.sleep(min(_LOOK * 2 ** (len(self._attempts) - 1), _LONGEST_PAUSE))
        # Nothing reports that storage can be used again.
        while self.stall and not await self.stall.over(self._pools):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)

        async def again() -> None:
            if self.stall:
                await machine.cont()

        self._enqueue(again)


def stall_of(spec: VmSpec, disks: Mapping[str, bool]) -> Stall:
    """`disks` are those that wait, as `machine.block_errors` tells; a disk no longer known is `local`."""
    pool_of = {disk.id: disk.pool for disk in spec.disks}
    pools: dict[str | None, bool] = {}
    for disk, room in disks.items():
        pool = pool_of.get(disk)
        pools[pool] = room and pools.get(pool, True)
    return Stall(pools or {None: False})


def _called(pool: str | None) -> str:
    return f"pool {pool!r}" if pool is not None else "the pool 'local' (the VM's own folder)"
