"""Tests of failovers go on where an earlier daemon left them, end in time, and begin by themselves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.replication.failover_test_records import KEPT, FailoverTestBook, FailoverTestUnderWay
from holdfast.replication.failover_testing import FailoverTests
from holdfast.replication.store.errors import PointNotFound, ReplicaInUse
from holdfast.replication.store.record import Point
from holdfast.spec.failover_test import (
    FailoverCheck,
    FailoverTest,
    FailoverTestCreate,
    FailoverTestPhase,
    FailoverTestPlan,
    FailoverVerdict,
)
from holdfast.spec.vm import GuestOs
from holdfast.spec.vm_requests import ExecRequest, ExecResult
from holdfast.vm.records import VmNotFound

TIME = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
POINTS = tuple(
    Point(number, number, TIME + timedelta(seconds=number), {"disk0": 1}, 1, "broken" if number == 9 else "")
    for number in (3, 5, 9)
)


class Host:
    """VMs, operations and points, as far as tests of failovers are concerned."""

    def __init__(self) -> None:
        self.vms: dict[str, Any] = {}
        self.begun: list[tuple[int, Any]] = []
        self.asked: list[ExecRequest] = []
        self.refusal: Exception | None = None
        self.exit_code = 0
        self.cancelled: list[str] = []
        self.make_way: Callable[[str], Awaitable[None]] | None = None
        self.made, self.deleted = asyncio.Event(), asyncio.Event()
        self.made.set()
        self.deleted.set()

    # Revival

    async def begin(self, held: Any, number: int, wanted: Any) -> Any:
        if self.refusal is not None:
            raise self.refusal
        self.begun.append((number, wanted))
        self.vms[wanted.vm] = owner(wanted.vm)
        return SimpleNamespace(findings=())

    async def ended(self, begun: Any) -> None:
        await self.made.wait()

    async def sweep(self) -> None:
        return

    # Registry

    async def named(self, name: str) -> Any:
        if name not in self.vms:
            raise VmNotFound(f"there is no VM {name}")
        return self.vms[name]

    async def execute(self, name: str, request: ExecRequest) -> ExecResult:
        self.asked.append(request)
        return ExecResult(exit_code=self.exit_code, stdout="seen", stderr="")

    async def delete(self, name: str, force: bool, actor: str) -> Any:
        self.vms[name].record.operation = "delete"
        return SimpleNamespace(id="delete")

    # Operations

    async def get(self, name: str) -> Any:
        if name == "delete":
            return SimpleNamespace(kind="vm.delete")
        return SimpleNamespace(name=name, vm="source")

    async def cancel(self, operation: str) -> None:
        self.cancelled.append(operation)

    async def wait(self, operation: str) -> Any:
        await self.deleted.wait()
        if operation == "delete":
            self.vms.clear()
        return SimpleNamespace(error=None)

    # Records (whose `get` stands above) and store of replicas

    def replica(self, name: str) -> Any:
        return SimpleNamespace(points=lambda: POINTS, opened=lambda: {"token": 5})


def owner(vm: str) -> Any:
    async def agent() -> None:
        return

    spec = SimpleNamespace(guest_agent=True, os=GuestOs.LINUX)
    record = SimpleNamespace(id=vm, operation=None, spec=spec, state="running")
    return SimpleNamespace(record=record, machine=object(), guest=SimpleNamespace(agent=agent))


class Rig:
    def __init__(self, book: FailoverTestBook) -> None:
        self.book, self.host = book, Host()
        self.tests = self.anew()

    def anew(self) -> FailoverTests:
        """As a daemon that has just started has it."""
        host = cast(Any, self.host)
        return FailoverTests(self.book, host, host, host, host, host)

    async def until(self, holds: Callable[[FailoverTest], bool]) -> FailoverTest:
        """The newest test, looked after until it is so."""
        keeping = asyncio.create_task(self.tests.keep())
        try:
            async with asyncio.timeout(20):
                while not ((found := await self.book.all("web")) and holds(found[0])):
                    await asyncio.sleep(0.01)
            return found[0]
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    catalog = Catalog.open(tmp_path / "catalog.sqlite")
    yield Rig(FailoverTestBook(catalog, EventLog(catalog)))
    catalog.close()


def ended(test: FailoverTest) -> bool:
    return test.phase is FailoverTestPhase.ENDED


def runs(test: FailoverTest) -> bool:
    return test.phase is FailoverTestPhase.RUNNING


async def test_a_check_is_asked_of_the_guest_and_then_all_is_cleaned_up(rig: Rig) -> None:
    test = await rig.tests.begin("web", FailoverTestCreate(command="x | y", wait_seconds=7))
    found = await rig.until(ended)
    assert (found.id, found.point, found.verdict) == (test.id, 5, FailoverVerdict.PASSED)
    assert rig.host.asked == [ExecRequest(argv=("/bin/sh", "-c", "x | y"), timeout_seconds=7)]
    (number, wanted) = rig.host.begun[0]
    assert (number, wanted.isolated, wanted.same_identity, wanted.name) == (5, True, False, "web - Test")
    assert rig.host.vms == {}


async def test_a_point_is_chosen_by_number_or_time(rig: Rig) -> None:
    for request, number in (
        (FailoverTestCreate(point=3, command="x"), 3),
        (FailoverTestCreate(at=TIME + timedelta(seconds=4), command="x"), 3),
        (FailoverTestCreate(at=TIME + timedelta(days=1), command="x"), 5),
    ):
        await rig.tests.begin("web", request)
        await rig.until(ended)
        assert rig.host.begun[-1][0] == number
    with pytest.raises(PointNotFound):
        await rig.tests.begin("web", FailoverTestCreate(point=4))
    assert [point.open for point in await rig.tests.points("web")] == [False, True, False]


async def test_one_test_at_a_time_and_what_is_refused_leaves_no_record(rig: Rig) -> None:
    await rig.tests.begin("web", FailoverTestCreate())
    assert (await rig.until(runs)).verdict is FailoverVerdict.PASSED
    with pytest.raises(FailoverTestUnderWay):
        await rig.tests.begin("web", FailoverTestCreate())
    assert (await rig.tests.end("web")).phase is FailoverTestPhase.ENDED
    rig.host.refusal = ReplicaInUse("in use")
    with pytest.raises(ReplicaInUse):
        await rig.tests.begin("web", FailoverTestCreate())
    assert len(await rig.book.all("web")) == 1


async def test_a_test_whose_time_is_over_ends_also_after_a_restart(rig: Rig) -> None:
    test = await rig.tests.begin("web", FailoverTestCreate(for_seconds=3600))
    await rig.until(runs)
    rig.tests = rig.anew()
    await rig.book.change(test.id, until=datetime.now(UTC) - timedelta(seconds=1))
    await rig.until(ended)
    assert rig.host.vms == {}


async def test_a_test_goes_on_after_a_restart_unless_its_vm_was_never_made(rig: Rig) -> None:
    rig.host.made.clear()
    await rig.tests.begin("web", FailoverTestCreate(command="x"))
    rig.tests = rig.anew()
    assert (await rig.until(ended)).verdict is FailoverVerdict.PASSED
    await rig.tests.begin("web", FailoverTestCreate(command="x"))
    rig.tests, rig.host.vms = rig.anew(), {}
    found = await rig.until(ended)
    assert (found.verdict, "the daemon ended" in found.error) == (FailoverVerdict.FAILED, True)


async def test_nobody_ends_a_test_that_is_being_ended(rig: Rig) -> None:
    test = await rig.tests.begin("web", FailoverTestCreate())
    await rig.until(runs)
    rig.host.deleted.clear()
    ending = asyncio.create_task(rig.tests.end("web"))
    keeping = asyncio.create_task(rig.tests.keep())
    while (await rig.book.get(test.id)).phase is not FailoverTestPhase.ENDING:
        await asyncio.sleep(0)
    again = asyncio.create_task(rig.tests.end("web"))
    await asyncio.sleep(0.1)  # for whoever would interfere
    rig.host.deleted.set()
    assert [each.phase for each in await asyncio.gather(ending, again)] == [FailoverTestPhase.ENDED] * 2
    keeping.cancel()
    assert rig.host.cancelled == []


async def test_a_failover_ends_the_test(rig: Rig) -> None:
    assert rig.host.make_way is not None
    await rig.host.make_way("web")  # where there is none
    await rig.tests.begin("web", FailoverTestCreate())
    await rig.until(runs)
    await rig.host.make_way("web")
    assert [ended(each) for each in await rig.book.all("web")] == [True]


async def test_a_vm_that_somebody_deleted_ends_its_test(rig: Rig) -> None:
    await rig.tests.begin("web", FailoverTestCreate())
    await rig.until(runs)
    rig.host.vms.clear()
    await rig.until(ended)


async def test_a_test_that_is_due_begins_and_one_that_is_refused_is_reported(rig: Rig) -> None:
    check = FailoverCheck(command="x", wait_seconds=5)
    await rig.tests.plan("web", FailoverTestPlan(schedule="every 5m", check=check))
    plan = await rig.tests.planned("web")
    assert plan is not None
    assert plan.since is not None
    await rig.book.plan("web", plan.model_copy(update={"since": plan.since - timedelta(minutes=6)}))
    rig.host.exit_code = 3
    found = await rig.until(ended)
    assert (found.scheduled, found.verdict, found.exit_code) == (True, FailoverVerdict.FAILED, 3)
    assert (found.check, found.output) == (check, "seen")
    assert len(await rig.book.all("web")) == 1  # the next one is due in five minutes

    await rig.book.change(found.id, started=found.started - timedelta(minutes=6))
    rig.host.refusal = ReplicaInUse("in use", cure="Wait.")
    found = await rig.until(lambda test: "in use" in test.error)
    assert (found.phase, found.verdict) == (FailoverTestPhase.ENDED, FailoverVerdict.FAILED)
    await rig.tests.plan("web", None)
    assert await rig.tests.planned("web") is None


async def test_only_the_last_tests_are_remembered(rig: Rig) -> None:
    for number in range(KEPT + 3):
        test = FailoverTest(
            id=str(number),
            replica="web",
            vm="v",
            vm_id="v",
            point=1,
            taken=TIME,
            started=TIME + timedelta(seconds=number),
        )
        await rig.book.add(test)
        await rig.book.change(test.id, phase=FailoverTestPhase.ENDED)
    found = await rig.book.all("web")
    assert [len(found), found[0].id, found[-1].id] == [KEPT, str(KEPT + 2), "3"]
