"""What an initial copy of a replica can begin with; folders are those of the daemon's host."""

from fastapi import APIRouter

from holdfast.api.access import Admin, With
from holdfast.spec.operation import Operation
from holdfast.spec.seed import SeedExport, SeedFromVm, SeedImport

router = APIRouter(tags=["replicas"])


@router.post("/v1/vms/{name}/replica/seed", status_code=202)
async def export_replica_seed(services: With, caller: Admin, name: str, request: SeedExport) -> Operation:
    """Write a VM's disks into a folder, sealed for one receiver."""
    return await services.replicas.seeds.export(name, request, caller.name)


@router.post("/v1/replica/seeds", status_code=202)
async def import_replica_seed(services: With, caller: Admin, request: SeedImport) -> Operation:
    """Make a seed that a paired source wrote the base of a replica."""
    return await services.replicas.seeds.take(request, caller.name)


@router.post("/v1/replica/seeds/from-vm", status_code=202)
async def seed_replica_from_vm(services: With, caller: Admin, request: SeedFromVm) -> Operation:
    """Make a copy of a VM of this host the base of a replica."""
    return await services.replicas.seeds.from_vm(request, caller.name)
