"""Checkpoints of VMs: made, returned to and deleted as operations; a guest's user may do none of it."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Operator, Viewer, With
from holdfast.spec.checkpoint import (
    CheckpointApply,
    CheckpointChange,
    CheckpointCreate,
    CheckpointSchedule,
    CheckpointView,
)
from holdfast.spec.operation import Operation

router = APIRouter(prefix="/v1/vms/{name}", tags=["checkpoints"])


@router.get("/checkpoints")
async def list_checkpoints(services: With, _: Viewer, name: str) -> list[CheckpointView]:
    return list(await services.checkpoints.list(name))


@router.post("/checkpoints", status_code=202)
async def create_checkpoint(
    services: With, caller: Operator, name: str, request: CheckpointCreate
) -> Operation:
    return await services.checkpoints.create(name, request, caller.name)


@router.get("/checkpoints/{checkpoint}")
async def show_checkpoint(services: With, _: Viewer, name: str, checkpoint: str) -> CheckpointView:
    return await services.checkpoints.show(name, checkpoint)


@router.patch("/checkpoints/{checkpoint}")
async def change_checkpoint(
    services: With, caller: Operator, name: str, checkpoint: str, change: CheckpointChange
) -> CheckpointView:
    return await services.checkpoints.change(name, checkpoint, change, caller.name)


@router.delete("/checkpoints/{checkpoint}", status_code=202)
async def delete_checkpoint(
    services: With, caller: Admin, name: str, checkpoint: str, subtree: bool = False
) -> Operation:
    return await services.checkpoints.delete(name, checkpoint, subtree, caller.name)


@router.post("/checkpoints/{checkpoint}/apply", status_code=202)
async def apply_checkpoint(
    services: With, caller: Admin, name: str, checkpoint: str, request: CheckpointApply
) -> Operation:
    return await services.checkpoints.apply(name, checkpoint, request, caller.name)


@router.get("/checkpoint-schedule")
async def show_checkpoint_schedule(services: With, _: Viewer, name: str) -> CheckpointSchedule:
    return await services.checkpoints.schedule(name)


@router.put("/checkpoint-schedule")
async def set_checkpoint_schedule(
    services: With, _: Admin, name: str, schedule: CheckpointSchedule
) -> CheckpointSchedule:
    return await services.checkpoints.set_schedule(name, schedule)
