"""Failovers of replicated VMs, and whose turn it is to run each."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Viewer, With
from holdfast.spec.operation import Operation
from holdfast.spec.turn import Failover, PlannedFailover, TurnView

router = APIRouter(tags=["replicas"])


@router.get("/v1/replica/turns")
async def list_replica_turns(services: With, _: Viewer) -> tuple[TurnView, ...]:
    """Whose turn it is to run each VM that failed over, or did once."""
    return await services.replicas.turning.turns()


@router.post("/v1/replica/held/{name}/failover", status_code=202)
async def fail_over_replica(services: With, caller: Admin, name: str, request: Failover) -> Operation:
    """Run a VM here from a point of its replica; another may be chosen until that is committed."""
    return await services.replicas.turning.failover(name, request, caller.name)


@router.post("/v1/replica/held/{name}/commit")
async def commit_replica_failover(services: With, _: Admin, name: str) -> TurnView:
    """The failover is final: the other points are dropped, and the VM is replicated back."""
    return await services.replicas.turning.commit(name)


@router.delete("/v1/replica/held/{name}/failover", status_code=202)
async def cancel_replica_failover(services: With, caller: Admin, name: str) -> Operation:
    """The VM that was made is deleted, and received again."""
    return await services.replicas.turning.cancel(name, caller.name)


@router.post("/v1/vms/{name}/replica/failover", status_code=202)
async def hand_vm_over(services: With, caller: Admin, name: str, request: PlannedFailover) -> Operation:
    """A planned failover to the host that holds the VM's replica; nothing is lost."""
    return await services.replicas.turning.hand_over(name, request, caller.name)


@router.post("/v1/vms/{name}/replica/reclaim")
async def reclaim_vm(services: With, _: Admin, name: str) -> TurnView:
    """The VM over there is gone for good: it may start here again."""
    return await services.replicas.turning.reclaim(name)
