"""When VMs on a schedule are attested: a whole interval after each boot, a few at once, whatever fails."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.vm import attest_work
from holdfast.vm.attest_work import AttestSchedule


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Desk:
    """Attestations that are asked for; `meanwhile` runs in each."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once = self.most = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def attest_on_schedule(self, vm: str) -> None:
        self.asked.append(vm)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await self.hold.wait()
        self.at_once -= 1
        if vm == "broken":
            raise ZeroDivisionError

    async def intervals(self) -> dict[str, int]:
        return self.wanted

    wanted: dict[str, int] = {}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(attest_work, "time", made)
    return made


def schedule(desk: Desk, boots: Callable[[], dict[str, object]]) -> AttestSchedule:
    anything: Any = desk
    return AttestSchedule(anything, anything, boots)


async def look(each: AttestSchedule) -> None:
    await each._look()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_vm_is_due_an_interval_after_each_boot(clock: Clock) -> None:
    desk, boots = Desk(), {"web": ("machine", 0), "off": ("other", 0)}
    desk.wanted = {"web": 60, "stopped": 60}
    kept = schedule(desk, lambda: dict(boots))
    await look(kept)
    clock.now += 59
    await look(kept)
    assert desk.asked == []
    clock.now += 1
    await look(kept)
    assert desk.asked == ["web"]
    boots["web"] = ("machine", 1)  # its guest restarted
    clock.now += 60
    await look(kept)
    assert desk.asked == ["web"]
    clock.now += 60
    await look(kept)
    assert desk.asked == ["web", "web"]
    del boots["web"]
    clock.now += 600
    await look(kept)
    assert desk.asked == ["web", "web"]


async def test_a_few_go_at_once_and_none_twice(clock: Clock) -> None:
    desk = Desk()
    names = [f"vm{number}" for number in range(9)]
    desk.wanted = dict.fromkeys(names, 30)
    kept = schedule(desk, lambda: {name: (name, 0) for name in names})
    desk.hold.clear()
    await look(kept)
    for _ in range(3):
        clock.now += 31
        await look(kept)
    assert len(desk.asked) == desk.most == 4
    desk.hold.set()
    await asyncio.sleep(0.01)
    assert sorted(desk.asked) == names and desk.most == 4


async def test_one_that_breaks_stops_no_other(clock: Clock) -> None:
    desk = Desk()
    desk.wanted = {"broken": 30, "web": 30}
    kept = schedule(desk, lambda: {"broken": (1, 0), "web": (2, 0)})
    for _ in range(3):
        await look(kept)
        clock.now += 31
    await look(kept)
    assert desk.asked.count("web") >= 2 and desk.asked.count("broken") >= 2
