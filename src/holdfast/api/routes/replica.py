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
    ReplicaEnable,
    ReplicaLimit,
    ReplicaSharedLimits,
    ReplicaStatus,
)
from holdfast.spec.replica_figures import ReplicaExplanation, ReplicaHistory

router = APIRouter(tags=["replicas"])


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
async def list_replications(services: With, _: Viewer) -> tuple[ReplicaStatus, ...]:
    """All VMs of this host that are replicated."""
    return await services.replicas.sent.list()


@router.get("/v1/vms/{name}/replica")
async def show_replication(services: With, _: Viewer, name: str) -> ReplicaStatus:
    return await services.replicas.sent.show(name)


@router.post("/v1/vms/{name}/replica", status_code=201)
async def enable_replication(services: With, _: Operator, name: str, request: ReplicaEnable) -> ReplicaStatus:
    """Replicate a VM from now on."""
    return await services.replicas.sent.enable(name, request)


@router.delete("/v1/vms/{name}/replica", status_code=204)
async def disable_replication(services: With, _: Operator, name: str) -> None:
    """What is held over there stays."""
    await services.replicas.sent.disable(name)


@router.get("/v1/vms/{name}/replica/history")
async def show_replication_history(
    services: With, _: Viewer, name: str, since: Annotated[int, Query(ge=60, le=90 * 86400)] = 43200
) -> ReplicaHistory:
    """What happened within the last `since` seconds, by minutes for a day, else by hours."""
    return await services.replicas.sent.history(name, timedelta(seconds=since))


@router.delete("/v1/vms/{name}/replica/history", status_code=204)
async def reset_replication_history(services: With, _: Operator, name: str) -> None:
    """Measure anew from now on."""
    await services.replicas.sent.reset_history(name)


@router.get("/v1/replica/held")
async def list_held_replicas(services: With, _: Viewer) -> tuple[HeldReplica, ...]:
    """Replicas of other hosts' VMs on this host."""
    return await services.replicas.held.held()


@router.delete("/v1/replica/held/{name}", status_code=204)
async def remove_held_replica(services: With, _: Admin, name: str) -> None:
    """A replica with all its points."""
    await services.replicas.held.remove(name)
