"""Replicas as the API's services give them: what was asked for is remembered."""

from datetime import UTC, datetime
from typing import Any

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
    ReplicaEnable,
    ReplicaLimits,
    ReplicaStatus,
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

    async def disable(self, name: str) -> None:
        del self.sent[name]

    async def show(self, name: str) -> ReplicaStatus:
        return self.sent[name]


class FakeReplications(FakeReplicas):
    async def list(self) -> tuple[ReplicaStatus, ...]:
        return tuple(self.sent.values())


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


class FakeHeld:
    def __init__(self) -> None:
        self.removed: list[str] = []

    async def held(self) -> tuple[HeldReplica, ...]:
        return (
            HeldReplica(
                name="web", source="north", connected=True, points=7, newest=TIME, oldest=TIME, used=5 << 20
            ),
        )

    async def remove(self, name: str) -> None:
        self.removed.append(name)


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
    )
