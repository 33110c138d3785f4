"""Disks of a VM: long work answers 202 with an Operation, short verbs with the disk as it now is."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Viewer, With
from holdfast.spec.disk_requests import DiskAdd, DiskBusChange, DiskGrow, DiskMove, DiskView, IoLimitsChange
from holdfast.spec.operation import Operation

router = APIRouter(prefix="/v1/vms/{name}/disks", tags=["devices"])


@router.get("")
async def list_disks(services: With, _: Viewer, name: str) -> tuple[DiskView, ...]:
    return await services.disks.list(name)


@router.post("", status_code=202)
async def add_disk(services: With, caller: Admin, name: str, request: DiskAdd) -> Operation:
    return await services.disks.add(name, request, caller.name)


@router.get("/{disk}")
async def show_disk(services: With, _: Viewer, name: str, disk: str) -> DiskView:
    return await services.disks.show(name, disk)


@router.delete("/{disk}", status_code=202)
async def remove_disk(
    services: With, caller: Admin, name: str, disk: str, keep: bool = False, force: bool = False
) -> Operation:
    return await services.disks.remove(name, disk, keep, force, caller.name)


@router.post("/{disk}/grow", status_code=202)
async def grow_disk(services: With, caller: Admin, name: str, disk: str, request: DiskGrow) -> Operation:
    return await services.disks.grow(name, disk, request, caller.name)


@router.post("/{disk}/move", status_code=202)
async def move_disk(services: With, caller: Admin, name: str, disk: str, request: DiskMove) -> Operation:
    return await services.disks.move(name, disk, request, caller.name)


@router.patch("/{disk}/limits")
async def limit_disk(services: With, _: Admin, name: str, disk: str, change: IoLimitsChange) -> DiskView:
    return await services.disks.limit(name, disk, change)


@router.put("/{disk}/bus")
async def change_disk_bus(services: With, _: Admin, name: str, disk: str, request: DiskBusChange) -> DiskView:
    return await services.disks.change_bus(name, disk, request)
