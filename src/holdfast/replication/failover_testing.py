"""Tests of failovers: an isolated VM over a point, its check, and that it is cleaned up whatever happens.

    starting ─▶ checking ─▶ passed or failed ─▶ running (until ended, or its time is over) ─▶ ended

The record comes first and goes through its phases before what they say is done, so that a daemon that ends
in between takes each test up where it was: one whose VM was not made yet has failed, all others go on.
"""

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta

import structlog

from holdfast.operations.engine import Operations
from holdfast.replication.failover_test_records import FailoverTestBook, NoFailoverTest
from holdfast.replication.failover_test_schedule import parse_schedule
from holdfast.replication.replica_records import HeldVm, NoSuchReplica, ReplicaBook
from holdfast.replication.revival import NoPoints, Revival, Revived, Wanted, chosen
from holdfast.replication.revived_spec import isolated_name
from holdfast.replication.store.errors import ReplicaNotFound
from holdfast.replication.store.record import Point
from holdfast.replication.store.replica import ReplicaStore
from holdfast.spec.errors import Conflict, HoldfastError, RemoteError, TimedOut
from holdfast.spec.failover_test import (
    LONGEST_OUTPUT,
    FailoverCheck,
    FailoverTest,
    FailoverTestCreate,
    FailoverTestPhase,
    FailoverTestPlan,
    FailoverVerdict,
    ReplicaPoint,
)
from holdfast.spec.ids import new_id
from holdfast.spec.vm import GuestOs
from holdfast.spec.vm_requests import ExecRequest, ExecResult
from holdfast.vm.guest import AgentNotThere
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import VmNotFound
from holdfast.vm.registry import VmRegistry

log = structlog.get_logger(__name__)

_TICK = 2.0  # seconds between two looks at whose time is over
_LOOK = 15.0  # seconds between two looks at what is due
_ACTOR = "schedule"
_SHELLS = {GuestOs.LINUX: ("/bin/sh", "-c"), GuestOs.WINDOWS: ("cmd.exe", "/c")}
_Phase, _Verdict = FailoverTestPhase, FailoverVerdict


class FailoverTestInterrupted(Conflict):
    """The daemon ended before the test's VM was made."""

    id = "failover-test-interrupted"


class FailoverGuestSilent(TimedOut):
    id = "failover-test-guest-silent"


class FailoverGuestEnded(Conflict):
    id = "failover-test-guest-ended"


class NoAgentToAsk(Conflict):
    id = "failover-test-needs-agent"


class FailoverTests:
    """Owner of the tests' tasks."""

    def __init__(
        self,
        book: FailoverTestBook,
        revival: Revival,
        registry: VmRegistry,
        operations: Operations,
        held: ReplicaBook,
        store: ReplicaStore,
    ) -> None:
        self._book = book
        self._revival = revival
        self._registry = registry
        self._operations = operations
        self._held = held
        self._store = store
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By the test's id."""
        self._cleaning: dict[str, asyncio.Lock] = {}
        """By the test's id; held by the one who deletes its VM."""
        self._beginning = asyncio.Lock()
        """Held while a test is recorded and its VM not yet begun: so nobody takes it for left behind."""

        revival.make_way = self._make_way

    # What is asked for

    async def points(self, name: str) -> tuple[ReplicaPoint, ...]:
        """Of a replica that this host holds, the oldest first. Raises NoSuchReplica."""
        held = await self._held.get(name)
        points, opened = await asyncio.to_thread(self._points, held.name)
        return tuple(
            ReplicaPoint(
                number=each.number,
                taken=each.taken,
                received=each.received,
                lost=each.lost,
                consistency=each.consistency,
                open=each.number in opened,
            )
            for each in points
        )

    async def begin(self, name: str, request: FailoverTestCreate, actor: str = "") -> FailoverTest:
        """Begin a test; returns as soon as its VM is being made.

        Raises:
            NoSuchReplica, FailoverTestUnderWay, NoAgentToAsk, and as `Revival.begin`.
        """
        held = await self._held.get(name)
        return await self._begin(held, request, actor, scheduled=False)

    async def end(self, name: str) -> FailoverTest:
        """End the test of a replica that is under way, and delete its VM.

        Raises NoSuchReplica, NoFailoverTest, and what deleting the VM fails by.
        """
        held = await self._held.get(name)
        async with self._beginning:
            test = await self._book.current(held.name)
        if test is None:
            raise NoFailoverTest(
                f"replica {held.name!r} is not being tested",
                value=held.name,
                cure=f"Begin with `holdfast replica test {held.name}`.",
            )
        task = self._tasks.pop(test.id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        return await self._clean(test.id)

    async def show(self, test_id: str) -> FailoverTest:
        """Raises NoFailoverTest."""
        return await self._book.get(test_id)

    async def tests(self, name: str | None) -> tuple[FailoverTest, ...]:
        """Those under way and those that ended lately, the newest first. Raises NoSuchReplica."""
        return await self._book.all((await self._held.get(name)).name if name is not None else None)

    async def plan(self, name: str, plan: FailoverTestPlan | None) -> FailoverTestPlan | None:
        """Test a replica by a schedule from now on; None: not any more. Raises BadTestSchedule."""
        held = await self._held.get(name)
        if plan is not None:
            parse_schedule(plan.schedule)
            plan = plan.model_copy(update={"since": datetime.now(UTC)})
        await self._book.plan(held.name, plan)
        return plan

    async def planned(self, name: str) -> FailoverTestPlan | None:
        held = await self._held.get(name)
        return next((plan for each, plan in (await self._book.plans()).items() if each == held.name), None)

    async def keep(self) -> None:
        """Take up tests of an earlier daemon, end those whose time is over, begin those due; for ever."""
        looked = -_LOOK
        while True:
            try:
                self._tasks = {each: task for each, task in self._tasks.items() if not task.done()}
                for test in await self._book.under_way():
                    with contextlib.suppress(NoFailoverTest):  # it was refused meanwhile
                        await self._tend(test)
                if time.monotonic() - looked >= _LOOK:
                    looked = time.monotonic()
                    for name, plan in (await self._book.plans()).items():
                        await self._look(name, plan)
            except Exception:
                log.exception("tests of failovers could not be looked after")
            await asyncio.sleep(_TICK)

    # How it goes on

    async def _begin(
        self, held: HeldVm, request: FailoverTestCreate, actor: str, *, scheduled: bool
    ) -> FailoverTest:
        points, _ = await asyncio.to_thread(self._points, held.name)
        point = _wanted_point(held.name, points, request)
        now = datetime.now(UTC)
        until = None if request.for_seconds is None else now + timedelta(seconds=request.for_seconds)
        test = FailoverTest(
            id=new_id(),
            replica=held.name,
            vm=isolated_name(held.name),
            vm_id=new_id(),
            point=point.number,
            taken=point.taken,
            started=now,
            scheduled=scheduled,
            check=FailoverCheck(command=request.command, wait_seconds=request.wait_seconds),
            keep=request.keep or (request.command is None and not scheduled),
            until=until,
        )
        wanted = Wanted(
            name=test.vm, same_identity=False, isolated=True, start=True, vm=test.vm_id, actor=actor
        )
        async with self._beginning:
            await self._book.add(test)
            try:
                begun = await self._revival.begin(held, point.number, wanted)
            except BaseException:
                await asyncio.shield(self._book.drop(test.id))
                raise
            self._take_up(test, begun)
        return await self._book.change(test.id, findings=begun.findings)

    def _take_up(self, test: FailoverTest, begun: Revived | None) -> None:
        task = asyncio.create_task(self._run(test, begun), name=f"failover test of {test.replica}")
        self._tasks[test.id] = task

    async def _tend(self, test: FailoverTest) -> None:
        """One that nobody works on."""
        async with self._beginning:
            test = await self._book.get(test.id)
        if test.phase is _Phase.ENDED:
            return
        task = self._tasks.get(test.id)
        if task is not None and not task.done():
            if test.until is None or datetime.now(UTC) < test.until:
                return
            task.cancel()
            await asyncio.wait({task})
        over = test.until is not None and datetime.now(UTC) >= test.until
        try:
            if over or test.phase is _Phase.ENDING:
                await self._clean(test.id)
            elif test.phase is not _Phase.RUNNING:
                self._take_up(test, None)
            else:
                await self._registry.named(test.vm_id)
        except VmNotFound:
            await self._clean(test.id)  # somebody has deleted it
        except HoldfastError as error:
            log.warning("a test of a failover was not cleaned up", vm=test.vm, error=error.message)

    async def _run(self, test: FailoverTest, begun: Revived | None) -> None:
        """All of a test but its end, which may come at any moment."""
        stays = False
        try:
            try:
                await self._made(test, begun)
                stays = test.keep
                if test.verdict is None:
                    await self._checked(test)
            except HoldfastError as error:
                text = f"{error.message}. {error.cure}".strip()[:1000]
                await self._book.change(test.id, verdict=_Verdict.FAILED, error=text)
            if stays:
                await self._book.change(test.id, phase=_Phase.RUNNING)
            else:
                await self._clean(test.id)
        except HoldfastError as error:
            log.warning("a test of a failover goes on later", vm=test.vm, error=error.message)
        except Exception:
            log.exception("a test of a failover failed by a fault of ours", vm=test.vm)

    async def _made(self, test: FailoverTest, begun: Revived | None) -> None:
        if begun is not None:
            await self._revival.ended(begun)
        else:
            try:
                owner = await self._registry.named(test.vm_id)
            except VmNotFound as error:
                raise FailoverTestInterrupted(
                    "the daemon ended before the VM was made", value=test.vm, cure="Begin the test again."
                ) from error
            await self._rested(owner)
        await self._book.change(test.id, phase=_Phase.CHECKING)

    async def _rested(self, owner: VmOwner) -> None:
        """No operation is under way on the VM. Raises RemoteError."""
        if owner.record.operation is not None:
            ended = await self._operations.wait(owner.record.operation)
            if ended.error:
                raise RemoteError(ended.error)

    async def _checked(self, test: FailoverTest) -> None:
        owner, check = await self._registry.named(test.vm_id), test.check
        if not owner.record.spec.guest_agent:
            if check.command is not None:
                raise NoAgentToAsk(
                    "the guest has no agent that could run the check",
                    value=test.vm,
                    cure="Install qemu-guest-agent in it, or test it without --check.",
                )
            return
        await _answering(owner, check.wait_seconds)
        ready = (datetime.now(UTC) - test.started).total_seconds()
        await self._book.change(test.id, ready_seconds=round(ready, 1))
        update: dict[str, object] = {"verdict": _Verdict.PASSED}
        if check.command is not None:
            done = await self._asked(owner, check)
            good = done.exit_code == 0
            update = {
                "verdict": _Verdict.PASSED if good else _Verdict.FAILED,
                "exit_code": done.exit_code,
                "output": _end_of(done.stdout + done.stderr),
                "error": "" if good else _how_it_ended(done),
            }
        await self._book.change(test.id, **update)

    async def _asked(self, owner: VmOwner, check: FailoverCheck) -> ExecResult:
        argv = (*_SHELLS[owner.record.spec.os], check.command or "")
        request = ExecRequest(argv=argv, timeout_seconds=check.wait_seconds)
        return await self._registry.execute(owner.record.id, request)

    async def _clean(self, test_id: str) -> FailoverTest:
        """Delete the VM of a test, whatever it is doing; then the test has ended. Safe to run again."""
        async with self._cleaning.setdefault(test_id, asyncio.Lock()):
            test = await self._book.get(test_id)
            if test.phase is not _Phase.ENDED:
                await self._book.change(test_id, phase=_Phase.ENDING)
                with contextlib.suppress(VmNotFound):
                    await self._delete(test.vm_id)
                await self._revival.sweep()
                test = await self._book.change(test_id, phase=_Phase.ENDED, ended=datetime.now(UTC))
        self._cleaning.pop(test_id, None)
        return test

    async def _delete(self, vm_id: str) -> None:
        """Raises VmNotFound, RemoteError."""
        owner = await self._registry.named(vm_id)
        under_way = owner.record.operation
        if under_way is not None:
            if (await self._operations.get(under_way)).kind != "vm.delete":
                await self._operations.cancel(under_way)
            await self._operations.wait(under_way)
        begun = await self._registry.delete(vm_id, True, _ACTOR)
        ended = await self._operations.wait(begun.id)
        if ended.error:
            raise RemoteError(ended.error)

    async def _make_way(self, name: str) -> None:
        """A failover does not wait for a test."""
        with contextlib.suppress(NoFailoverTest):
            await self.end(name)

    async def _look(self, name: str, plan: FailoverTestPlan) -> None:
        """Begin the test of a replica if it is due."""
        last = max(filter(None, (await self._book.last_scheduled(name), plan.since)), default=None)
        now = datetime.now().astimezone()
        if last is None or not parse_schedule(plan.schedule).due(last, now):
            return
        if await self._book.current(name) is not None:
            return  # when that has ended
        request = FailoverTestCreate(**plan.check.model_dump())
        try:
            await self._begin(await self._held.get(name), request, _ACTOR, scheduled=True)
        except NoSuchReplica:
            await self._book.plan(name, None)
        except HoldfastError as error:
            log.warning("a test that is due was refused", replica=name, error=error.message)
            await self._refused(name, plan, error)

    async def _refused(self, name: str, plan: FailoverTestPlan, error: HoldfastError) -> None:
        """It is reported as a test that failed, and tried again when the next one is due."""
        now = datetime.now(UTC)
        test = FailoverTest(
            id=new_id(),
            replica=name,
            vm=isolated_name(name),
            vm_id=new_id(),
            point=0,
            taken=now,
            started=now,
            scheduled=True,
            check=plan.check,
        )
        await self._book.add(test)
        text = f"{error.message}. {error.cure}".strip()[:1000]
        update = {"verdict": _Verdict.FAILED, "error": text, "phase": _Phase.ENDED, "ended": now}
        await self._book.change(test.id, **update)

    def _points(self, name: str) -> tuple[tuple[Point, ...], set[int]]:
        """All of a replica, and the numbers of those that are open."""
        try:
            replica = self._store.replica(name)
        except ReplicaNotFound:
            return (), set()  # nothing came yet
        return replica.points(), set(replica.opened().values())


def _wanted_point(name: str, points: tuple[Point, ...], request: FailoverTestCreate) -> Point:
    if request.at is None:
        return chosen(name, points, request.point)
    at = request.at if request.at.tzinfo is not None else request.at.astimezone()
    found = [each for each in points if each.taken <= at and not each.lost]
    if not found:
        raise NoPoints(
            f"replica {name!r} has no point of {at.isoformat()} or before",
            value=at.isoformat(),
            cure=f"See `holdfast replica points {name}`.",
        )
    return found[-1]


async def _answering(owner: VmOwner, seconds: float) -> None:
    """Wait for the guest's agent. Raises FailoverGuestSilent, FailoverGuestEnded."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        guest = owner.guest
        if owner.machine is None or guest is None:
            raise FailoverGuestEnded(
                "the VM ended before its guest's agent answered",
                value=str(owner.record.state),
                cure="See its console: `holdfast vm log`, with --keep.",
            )
        with contextlib.suppress(AgentNotThere):  # which waits for some seconds
            await guest.agent()
            return
        if loop.time() >= deadline:
            raise FailoverGuestSilent(
                f"the guest's agent did not answer within {seconds:g} seconds",
                value=seconds,
                cure="Look at its console with --keep, or give it longer with --wait.",
            )


def _end_of(text: str) -> str:
    return text[-LONGEST_OUTPUT:]


def _how_it_ended(done: ExecResult) -> str:
    if done.exit_code is None:
        return f"the check was ended by signal {done.signal}"
    return f"the check ended with exit code {done.exit_code}"
