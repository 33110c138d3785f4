"""VMs and checkpoints to take away: made as an operation, whose files are then fetched and forgotten."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from holdfast.api.access import Admin, With
from holdfast.spec.firmware_state import StateExport
from holdfast.spec.operation import Operation
from holdfast.spec.vm_export import VmExport

router = APIRouter(prefix="/v1", tags=["checkpoints"])
_BYTES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


@router.post("/vms/{name}/export", status_code=202)
async def export_vm(services: With, caller: Admin, name: str, request: VmExport) -> Operation:
    return await services.exports.begin(name, request, caller.name)


@router.post(
    "/vms/{name}/checkpoints/{checkpoint}/firmware-state",
    response_class=Response,
    responses=_BYTES,
)
async def export_checkpoint_state(
    services: With, _: Admin, name: str, checkpoint: str, request: StateExport
) -> Response:
    data = await services.exports.checkpoint_state(name, checkpoint, request)
    return Response(data, media_type="application/octet-stream")


@router.get(
    "/exports/{export}/{file}",
    response_class=FileResponse,
    responses=_BYTES,
)
async def exported_file(services: With, _: Admin, export: str, file: str) -> FileResponse:
    return FileResponse(await services.exports.file(export, file), media_type="application/octet-stream")


@router.delete("/exports/{export}", status_code=204)
async def forget_export(services: With, _: Admin, export: str) -> None:
    await services.exports.forget(export)
