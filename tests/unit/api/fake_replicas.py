"""Replicas as the API's services give them: what was asked for is remembered."""

from datetime import UTC, datetime, timedelta
from typing import Any

from fake_turns import FakeSeeds, FakeTurns

from holdfast.spec.errors import Conflict
from holdfast.spec.failover_test import (
    FailoverTest,
    FailoverTestCreate,
    FailoverTestPhase,
    FailoverTestPlan,
    FailoverVerdict,
    ReplicaPoint,
)
from holdfast.spec.operation import Operation
from holdfast.spec.replica import (
    HeldReplica,
    PeerAdd,
    PeerRole,
    PeerView,
    ReplicaAccept,
    ReplicaAccepted,
    ReplicaChange,
    ReplicaEnable,
    ReplicaExtend,
    ReplicaLimits,
    ReplicaSender,
    ReplicaSharedLimits,
    ReplicaStatus,
)
from holdfast.spec.replica_figures import (
    ReplicaCause,
    ReplicaEvidence,
    ReplicaExplanation,
    ReplicaHistory,
    ReplicaInterval,
    ReplicaPlan,
    ReplicaProgress,
)

TIME = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
TOKEN = "hfr_" + "a" * 43 + "." + "0" * 64


class FakeReplicaConflict(Conflict):
    id = "replica-enabled-already"


class FakeReplicas:
    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.sent: dict[str, ReplicaStatus] = {}

    # Peers

    async def accept(self, request: ReplicaAccept) -> ReplicaAccepted:
        self.asked.append(request)
        return ReplicaAccepted(token=TOKEN, expires=TIME)

    async def add(self, request: PeerAdd) -> PeerView:
        self.asked.append(request)
        return PeerView(
            name=request.name,
            role=PeerRole.RECEIVER,
            address=request.address,
            fingerprint="sha256:" + "0" * 64,
            paired=TIME,
            limits=None,
            vms=0,
        )

    # VMs that are sent

    async def enable(self, name: str, request: ReplicaEnable) -> ReplicaStatus:
        self.asked.append(request)
        if name in self.sent:
            raise FakeReplicaConflict(f"VM {name!r} is replicated already")
        self.sent[name] = status(name, request.peer)
        return self.sent[name]

    async def extend(self, name: str, request: ReplicaExtend) -> ReplicaStatus:
        self.asked.append(request)
        self.sent[name] = status(name, request.peer).model_copy(update={"sent_on": True})
        return self.sent[name]

    async def disable(self, name: str, peer: str | None) -> None:
        self.asked.append(peer)
        del self.sent[name]

    async def set(self, name: str, request: ReplicaChange, peer: str | None) -> ReplicaStatus:
        self.asked.append((request, peer))
        return self.sent[name]

    async def pause(self, name: str, peer: str | None, *, paused: bool) -> ReplicaStatus:
        self.asked.append((paused, peer))
        return self.sent[name]

    async def show(self, name: str, peer: str | None) -> ReplicaStatus:
        return self.sent[name]


class FakeReplications(FakeReplicas):
    reset: tuple[str, ...] = ()

    async def history(self, name: str, since: timedelta, peer: str | None) -> ReplicaHistory:
        self.asked.append(since)
        empty = interval(0, cycles=0, rpo=None)
        shown = [interval(minute, cycles=60, rpo=1.0 + minute) for minute in (0, 1, 2, 5)]
        total = empty.model_copy(update={"cycles": 240, "missed": 3, "largest_bytes": 5 << 20})
        return ReplicaHistory(
            vm=name, peer="south", total=total, last_sync=TIME, last_test=None, intervals=tuple(shown)
        )

    async def reset_history(self, name: str, peer: str | None) -> None:
        self.reset += (name,)

    async def list(self, vm: str | None) -> tuple[ReplicaStatus, ...]:
        return tuple(each for each in self.sent.values() if vm in (None, each.vm))


class FakePeers(FakeReplicas):
    async def remove(self, name: str) -> None:
        self.asked.append(name)

    async def list(self) -> tuple[PeerView, ...]:
        return (
            PeerView(
                name="north",
                role=PeerRole.SOURCE,
                address=None,
                fingerprint="sha256:" + "0" * 64,
                paired=TIME,
                limits=ReplicaLimits(vms=3, space=1 << 30),
                vms=1,
            ),
        )


class FakeReplicaLimits:
    def __init__(self) -> None:
        self.limits = ReplicaSharedLimits(host="none", peers={})

    async def show(self) -> ReplicaSharedLimits:
        return self.limits

    async def limit_host(self, limit: str) -> ReplicaSharedLimits:
        self.limits = self.limits.model_copy(update={"host": limit})
        return self.limits

    async def limit_peer(self, name: str, limit: str) -> ReplicaSharedLimits:
        self.limits = self.limits.model_copy(update={"peers": {name: limit}})
        return self.limits


class FakeExplanations:
    async def explain(self, name: str) -> tuple[ReplicaExplanation, ...]:
        cause = ReplicaCause(
            rule="replica-nobody-listens",
            severity="critical",
            side="replica",
            since=TIME,
            cause="The receiving host is there, but nobody listens for replicas",
            cure="Start its daemon.",
            error_id="replica-nobody-listens",
            error="nobody listens \x1b[2J",
        )
        fine = ReplicaExplanation(
            vm=name,
            peer="south",
            held=False,
            state="replicating",
            health="critical",
            summary=cause.cause,
            causes=(cause,),
            tried="3 tries failed.",
            attempts=3,
            next_try_seconds=2.0,
            figures={"rpo_seconds": 75.0, "churn": 2048.0, "points": 3, "allowed": None},
            evidence=(
                ReplicaEvidence(
                    ended=TIME,
                    seconds=0.5,
                    changed_bytes=4096,
                    sent_bytes=100,
                    error_id="replica-nobody-listens",
                    error="x",
                ),
            ),
        )
        return (fine,)


class FakePlanning:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def plan(self, *asked: Any) -> tuple[ReplicaPlan, ...]:
        self.asked.append(asked)
        plan = ReplicaPlan(
            vm="web",
            peer="south",
            measured_seconds=7200,
            churn=1e5,
            churn_peak=1e6,
            wire_ratio=0.5,
            rpo_seconds=5,
            bandwidth_p99=125_000,
            bandwidth_always=1.25e8,
            bandwidth=None,
            expected_p50_seconds=None,
            expected_p99_seconds=None,
            expected_worst_seconds=None,
        )
        return (plan,)


class FakeHeld:
    def __init__(self) -> None:
        self.removed: list[str] = []

    async def held(self) -> tuple[HeldReplica, ...]:
        return (
            HeldReplica(
                name="web", source="north", connected=True, points=7, newest=TIME, oldest=TIME, used=5 << 20
            ),
        )

    async def accept_from(self, name: str, request: ReplicaSender) -> HeldReplica:
        self.accepted = (name, request)
        (held,) = await self.held()
        return held.model_copy(update={"accepted_from": request.peer})

    async def remove(self, name: str) -> None:
        self.removed.append(name)


def interval(minute: int, *, cycles: int, rpo: float | None) -> ReplicaInterval:
    return ReplicaInterval(
        begin=TIME + timedelta(minutes=minute),
        seconds=60,
        cycles=cycles,
        missed=0,
        errors=0,
        average_bytes=1000.0 * minute,
        largest_bytes=2000 * minute,
        average_latency=0.2,
        changed_bytes=60_000 * minute,
        pending_bytes=0,
        rpo_p50_seconds=rpo,
        rpo_p99_seconds=rpo,
    )


class FakeFailoverTests:
    """One test, which has ended when it is asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.verdict = FailoverVerdict.PASSED

    def _test(self, name: str) -> FailoverTest:
        return FailoverTest(
            id="t1",
            replica=name,
            vm=f"{name} - Test",
            vm_id="v1",
            point=7,
            taken=TIME,
            started=TIME,
            phase=FailoverTestPhase.ENDED,
            verdict=self.verdict,
            ready_seconds=4.2,
            error="" if self.verdict is FailoverVerdict.PASSED else "the check ended with exit code 3",
            output="hello\n",
        )

    async def points(self, name: str) -> tuple[ReplicaPoint, ...]:
        return (ReplicaPoint(number=7, taken=TIME, received=4096, open=True),)

    async def begin(self, name: str, request: FailoverTestCreate, actor: str) -> FailoverTest:
        self.asked.append(request)
        return self._test(name)

    async def end(self, name: str) -> FailoverTest:
        self.asked.append("end")
        return self._test(name)

    async def show(self, test_id: str) -> FailoverTest:
        return self._test("web")

    async def tests(self, name: str | None) -> tuple[FailoverTest, ...]:
        return (self._test(name or "web"),)

    async def plan(self, name: str, plan: FailoverTestPlan | None) -> FailoverTestPlan | None:
        self.asked.append(plan)
        return plan

    async def planned(self, name: str) -> FailoverTestPlan | None:
        return None


class FakeRevival:
    def __init__(self, operations: Any) -> None:
        self._operations = operations

    async def settle(self, vm: str, actor: str) -> Operation:
        found: Operation = self._operations.begin("vm.settle", vm, actor, lambda: None)
        return found


def status(vm: str, peer: str) -> ReplicaStatus:
    return ReplicaStatus(
        vm=vm,
        peer=peer,
        state="replicating",
        health="warning",
        rpo_seconds=0.7,
        rpo_p50_seconds=0.5,
        rpo_p99_seconds=1.2,
        lag_bytes=4096,
        full_copies=0,
        points=9,
        target_seconds=1.0,
        throughput=1e6,
        cycles=10,
        last_error="",
        findings=("It is late. Wait.",),
        progress=ReplicaProgress(
            phase="copying", done_bytes=3 << 20, total_bytes=12 << 20, rate=float(1 << 20), seconds_left=9.0
        ),
    )


class FakeReplicas:
    def __init__(self, operations: Any) -> None:
        self.peers = FakePeers()
        self.sent = self.extensions = FakeReplications()
        self.held = FakeHeld()
        self.limits = FakeReplicaLimits()
        self.explanations = FakeExplanations()
        self.planning = FakePlanning()
        self.tests = FakeFailoverTests()
        self.revival = FakeRevival(operations)
        self.turning = FakeTurns(operations)
        self.seeds = FakeSeeds(operations)
