"""Replicas as the API's services give them: what was asked for is remembered."""

from datetime import UTC, datetime
from typing import Any

from holdfast.spec.errors import Conflict
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

    async def disable(self, name: str, peer: str | None) -> None:
        self.asked.append(peer)
        del self.sent[name]

    async def show(self, name: str, peer: str | None) -> ReplicaStatus:
        return self.sent[name]


class FakeReplications(FakeReplicas):
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
