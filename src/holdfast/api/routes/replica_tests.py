"""Points of replicas that this host holds, and tests of failovers to them."""

from fastapi import APIRouter

from holdfast.api.access import Operator, Viewer, With
from holdfast.spec.failover_test import FailoverTest, FailoverTestCreate, FailoverTestPlan, ReplicaPoint
from holdfast.spec.operation import Operation

router = APIRouter(tags=["replicas"])


@router.get("/v1/replica/held/{name}/points")
async def list_replica_points(services: With, _: Viewer, name: str) -> tuple[ReplicaPoint, ...]:
    """The oldest first."""
    return await services.replicas.tests.points(name)


@router.get("/v1/replica/held/{name}/test-schedule")
async def show_failover_test_schedule(services: With, _: Viewer, name: str) -> FailoverTestPlan | None:
    return await services.replicas.tests.planned(name)


@router.put("/v1/replica/held/{name}/test-schedule")
async def set_failover_test_schedule(
    services: With, _: Operator, name: str, request: FailoverTestPlan
) -> FailoverTestPlan | None:
    """Test a replica by itself from now on."""
    return await services.replicas.tests.plan(name, request)


@router.delete("/v1/replica/held/{name}/test-schedule", status_code=204)
async def remove_failover_test_schedule(services: With, _: Operator, name: str) -> None:
    await services.replicas.tests.plan(name, None)


@router.post("/v1/replica/held/{name}/test", status_code=202)
async def begin_failover_test(
    services: With, caller: Operator, name: str, request: FailoverTestCreate
) -> FailoverTest:
    """Make an isolated VM from a point, check it, and clean up; replication goes on."""
    return await services.replicas.tests.begin(name, request, caller.name)


@router.delete("/v1/replica/held/{name}/test")
async def end_failover_test(services: With, _: Operator, name: str) -> FailoverTest:
    """End the test that is under way; its VM is gone when this answers."""
    return await services.replicas.tests.end(name)


@router.get("/v1/replica/tests")
async def list_failover_tests(
    services: With, _: Viewer, replica: str | None = None
) -> tuple[FailoverTest, ...]:
    """Those under way and the last that ended, the newest first."""
    return await services.replicas.tests.tests(replica)


@router.get("/v1/replica/tests/{test}")
async def show_failover_test(services: With, _: Viewer, test: str) -> FailoverTest:
    return await services.replicas.tests.show(test)


@router.post("/v1/vms/{name}/replica-settle", status_code=202)
async def settle_revived_vm(services: With, caller: Operator, name: str) -> Operation:
    """Copy what a VM still reads from a replica into volumes of its own."""
    return await services.replicas.revival.settle(name, caller.name)
