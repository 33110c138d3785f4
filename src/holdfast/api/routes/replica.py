"""Replicas: hosts paired with this one, VMs that are sent, and those that are held for others."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from holdfast.api.access import Admin, Operator, Viewer, With
from holdfast.spec.replica import (
    HeldReplica,
    PeerAdd,
    PeerView,
    ReplicaAccept,
    ReplicaAccepted,
    ReplicaChange,
    ReplicaEnable,
    ReplicaExtend,
    ReplicaLimit,
    ReplicaSender,
    ReplicaSharedLimits,
    ReplicaStatus,
)
from holdfast.spec.replica_figures import ReplicaExplanation, ReplicaHistory, ReplicaPlan

router = APIRouter(tags=["replicas"])
Peer = Annotated[str | None, Query(max_length=63)]


@router.post("/v1/replica/tokens", status_code=201)
async def accept_replica_source(services: With, _: Admin, request: ReplicaAccept) -> ReplicaAccepted:
    """A token by which one host may pair with this one, once. It is in this answer and nowhere else."""
    return await services.replicas.peers.accept(request)


@router.get("/v1/replica/peers")
async def list_replica_peers(services: With, _: Viewer) -> tuple[PeerView, ...]:
    return await services.replicas.peers.list()


@router.post("/v1/replica/peers", status_code=201)
async def add_replica_peer(services: With, _: Admin, request: PeerAdd) -> PeerView:
    """Pair with a host that made a token; both pin each other's certificate."""
    return await services.replicas.peers.add(request)


@router.delete("/v1/replica/peers/{name}", status_code=204)
async def remove_replica_peer(services: With, _: Admin, name: str) -> None:
    await services.replicas.peers.remove(name)


@router.get("/v1/replica/explain/{name}")
async def explain_replica(services: With, _: Viewer, name: str) -> tuple[ReplicaExplanation, ...]:
    """Why a VM that is sent, or a replica that is held, is as it is."""
    return await services.replicas.explanations.explain(name)


@router.get("/v1/replica/plan")
async def plan_replication(
    services: With,
    _: Viewer,
    vm: Annotated[str | None, Query(max_length=63)] = None,
    rpo_seconds: Annotated[float | None, Query(ge=0.5, le=86400)] = None,
    bandwidth: Annotated[str | None, Query(max_length=40)] = None,
    since: Annotated[int, Query(ge=60, le=90 * 86400)] = 86400,
) -> tuple[ReplicaPlan, ...]:
    """What bandwidth an RPO needs, and which RPO a bandwidth gives, by the last `since` seconds."""
    return await services.replicas.planning.plan(vm, rpo_seconds, bandwidth, timedelta(seconds=since))


@router.get("/v1/replica/limits")
async def show_replica_limits(services: With, _: Viewer) -> ReplicaSharedLimits:
    """What this host may send, and what to a peer; a VM's own limit is among its settings."""
    return await services.replicas.limits.show()


@router.put("/v1/replica/limits/host")
async def limit_replicas_of_host(services: With, _: Admin, request: ReplicaLimit) -> ReplicaSharedLimits:
    return await services.replicas.limits.limit_host(request.limit)


@router.put("/v1/replica/limits/peers/{name}")
async def limit_replicas_to_peer(
    services: With, _: Admin, name: str, request: ReplicaLimit
) -> ReplicaSharedLimits:
    return await services.replicas.limits.limit_peer(name, request.limit)


@router.get("/v1/replica/status")
async def list_replications(
    services: With, _: Viewer, vm: Annotated[str | None, Query(max_length=63)] = None
) -> tuple[ReplicaStatus, ...]:
    """All VMs of this host that are replicated, or one of them: a row for each peer."""
    return await services.replicas.sent.list(vm)


@router.get("/v1/vms/{name}/replica")
async def show_replication(services: With, _: Viewer, name: str, peer: Peer = None) -> ReplicaStatus:
    """To a peer; it may be left out where there is one only."""
    return await services.replicas.sent.show(name, peer)


@router.post("/v1/vms/{name}/replica", status_code=201)
async def enable_replication(services: With, _: Operator, name: str, request: ReplicaEnable) -> ReplicaStatus:
    """Replicate a VM from now on."""
    return await services.replicas.sent.enable(name, request)


@router.patch("/v1/vms/{name}/replica")
async def change_replication(
    services: With, _: Operator, name: str, request: ReplicaChange, peer: Peer = None
) -> ReplicaStatus:
    """Change settings while it goes on. A peer may be left out where there is one only."""
    return await services.replicas.sent.set(name, request, peer)


@router.post("/v1/vms/{name}/replica/pause")
async def pause_replication(services: With, _: Operator, name: str, peer: Peer = None) -> ReplicaStatus:
    """Send nothing until it is resumed; what changes meanwhile stays known."""
    return await services.replicas.sent.pause(name, peer, paused=True)


@router.post("/v1/vms/{name}/replica/resume")
async def resume_replication(services: With, _: Operator, name: str, peer: Peer = None) -> ReplicaStatus:
    return await services.replicas.sent.pause(name, peer, paused=False)


@router.delete("/v1/vms/{name}/replica", status_code=204)
async def disable_replication(services: With, _: Operator, name: str, peer: Peer = None) -> None:
    """What is held over there stays. A peer may be left out where there is one only."""
    await services.replicas.sent.disable(name, peer)


@router.get("/v1/vms/{name}/replica/history")
async def show_replication_history(
    services: With,
    _: Viewer,
    name: str,
    since: Annotated[int, Query(ge=60, le=90 * 86400)] = 43200,
    peer: Peer = None,
) -> ReplicaHistory:
    """What happened within the last `since` seconds, by minutes for a day, else by hours."""
    return await services.replicas.sent.history(name, timedelta(seconds=since), peer)


@router.delete("/v1/vms/{name}/replica/history", status_code=204)
async def reset_replication_history(services: With, _: Operator, name: str, peer: Peer = None) -> None:
    """Measure anew from now on."""
    await services.replicas.sent.reset_history(name, peer)


@router.get("/v1/replica/held")
async def list_held_replicas(services: With, _: Viewer) -> tuple[HeldReplica, ...]:
    """Replicas of other hosts' VMs on this host."""
    return await services.replicas.held.held()


@router.post("/v1/replica/held/{name}/sender")
async def accept_replica_from(services: With, _: Admin, name: str, request: ReplicaSender) -> HeldReplica:
    """The VM failed over from the host that it was sent by: another one may send it in its place."""
    return await services.replicas.held.accept_from(name, request)


@router.post("/v1/replica/held/{name}/extension", status_code=201)
async def extend_replica(services: With, _: Operator, name: str, request: ReplicaExtend) -> ReplicaStatus:
    """Send a replica on to a further host, from now on; shown and changed as a VM that is sent."""
    return await services.replicas.extensions.extend(name, request)


@router.delete("/v1/replica/held/{name}", status_code=204)
async def remove_held_replica(services: With, _: Admin, name: str) -> None:
    """A replica with all its points."""
    await services.replicas.held.remove(name)
