"""A VM that waits for its storage: why, what is told of it, and when it is let on."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.spec.pool import PoolHealth
from holdfast.spec.vm import Disk, VmSpec, VmState
from holdfast.storage.pools.book import PoolNotFound, Pools
from holdfast.storage.pools.pool import PoolState
from holdfast.vm import stall as module
from holdfast.vm.stall import StallWatch, stall_of

MIB = 1 << 20
SPEC = VmSpec(
    cpus=1,
    memory=64 * MIB,
    disks=(
        Disk(id="disk0", volume="disk0", size=MIB),
        Disk(id="disk1", volume="disk1", size=MIB, pool="fast"),
        Disk(id="disk2", volume="disk2", size=MIB, pool="fast"),
    ),
)


class FakePools:
    def __init__(self) -> None:
        self.found = PoolState(PoolHealth.FULL, capacity=MIB * 100, free=0)
        self.known = True

    def of(self, _: str | None) -> "FakePools":
        if not self.known:
            raise PoolNotFound("gone")
        return self

    async def state(self) -> PoolState:
        return self.found


class Scene:
    def __init__(self) -> None:
        self.pools = FakePools()
        self.disks: dict[str, bool] = {"disk1": True}
        self.conts = 0
        self.told: list[str] = []
        self.actions: list[asyncio.Future[None]] = []
        self.watch = StallWatch(cast(Pools, self.pools), cast(Any, self), self._enqueue)
        self.machine = cast(Any, SimpleNamespace(block_errors=self, cont=self._cont))

    async def stalled(self) -> dict[str, bool]:
        return self.disks

    async def emit(self, kind: str, *_: Any) -> None:
        self.told.append(kind)

    async def _cont(self) -> None:
        self.conts += 1

    def _enqueue(self, action: Callable[[], Awaitable[None]]) -> None:
        self.actions.append(asyncio.ensure_future(action()))

    async def look(self, state: VmState = VmState.PAUSED) -> Any:
        record = SimpleNamespace(id="x", name="web", state=state, spec=SPEC, running_spec=None)
        return await self.watch.look(self.machine, cast(Any, record))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK", 0.01)


def test_what_a_stall_says() -> None:
    space = stall_of(SPEC, {"disk1": True, "disk2": True})
    assert (space.event, space.data["pools"]) == ("vm.waits-for-space", ["fast"])
    assert "space in pool 'fast'" in space.text
    gone = stall_of(SPEC, {"disk0": True, "disk1": True, "disk2": False})
    assert (gone.event, gone.data["pools"]) == ("vm.waits-for-storage", ["local", "fast"])
    assert "pool 'fast', whose storage failed" in gone.text
    assert stall_of(SPEC, {}).data["pools"] == ["local"]


async def test_it_goes_on_once_there_is_space() -> None:
    scene = Scene()
    assert await scene.look(VmState.RUNNING) is not None
    assert scene.told == [], "the change of its state tells it"
    await asyncio.sleep(0.1)
    assert scene.conts == 0
    scene.pools.found = PoolState(PoolHealth.AVAILABLE, capacity=MIB * 100, free=MIB)
    await asyncio.sleep(0.1)
    assert scene.conts == 0, "that is not enough"
    scene.pools.found = PoolState(PoolHealth.AVAILABLE, capacity=MIB * 100, free=8 * MIB)
    await asyncio.sleep(0.1)
    assert scene.conts == 1
    scene.disks = {}
    assert await scene.look() is None
    assert scene.watch.stall is None


async def test_it_waits_for_a_pool_and_for_its_record() -> None:
    scene = Scene()
    scene.disks = {"disk1": False}
    scene.pools.found = PoolState(PoolHealth.VANISHED, "away")
    await scene.look()
    await scene.look()
    assert scene.told == ["vm.waits-for-storage"], "once"
    await asyncio.sleep(0.1)
    scene.pools.known = False
    scene.pools.found = PoolState(PoolHealth.AVAILABLE, capacity=MIB, free=0)
    await asyncio.sleep(0.1)
    assert scene.conts == 0
    scene.pools.known = True
    await asyncio.sleep(0.2)
    assert scene.conts == 1


async def test_who_pauses_it_keeps_it_paused() -> None:
    scene = Scene()
    await scene.look()
    scene.watch.forget()
    scene.pools.found = PoolState(PoolHealth.AVAILABLE, capacity=MIB * 100, free=8 * MIB)
    await asyncio.sleep(0.1)
    assert scene.conts == 0


async def test_attempts_in_vain_come_further_apart() -> None:
    scene = Scene()
    scene.disks = {"disk1": False}
    scene.pools.found = PoolState(PoolHealth.AVAILABLE, capacity=MIB * 100, free=8 * MIB)
    times = []
    for _ in range(5):
        before, began = scene.conts, asyncio.get_running_loop().time()
        await scene.look()
        while scene.conts == before:
            await asyncio.sleep(0.001)
        times.append(asyncio.get_running_loop().time() - began)
    assert times[4] > 4 * times[0]
