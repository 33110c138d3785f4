"""Firmware state of VMs, and the keys to it: all of it is an admin's, and nothing of it is stored."""

from fastapi import APIRouter, Response

from holdfast.api.access import Admin, With
from holdfast.spec.firmware_state import (
    HostKeyRotate,
    HostKeyRotation,
    Recover,
    RecoveryKey,
    RecoveryKeyRequest,
    StateExport,
    StateImport,
)
from holdfast.spec.vm_view import VmView

router = APIRouter(prefix="/v1", tags=["firmware state"])


@router.post(
    "/vms/{name}/firmware-state/export",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
async def export_firmware_state(services: With, _: Admin, name: str, request: StateExport) -> Response:
    data = await services.firmware.export_state(name, request)
    return Response(data, media_type="application/octet-stream")


@router.post("/vms/{name}/firmware-state/import")
async def import_firmware_state(services: With, caller: Admin, name: str, request: StateImport) -> VmView:
    path = services.uploads.take(request.upload)
    return await services.firmware.import_state(name, path, request, caller.name)


@router.post("/vms/{name}/recovery-key")
async def make_recovery_key(services: With, _: Admin, name: str, request: RecoveryKeyRequest) -> RecoveryKey:
    return await services.firmware.recovery_key(name, request)


@router.post("/vms/{name}/recover")
async def recover_vm(services: With, _: Admin, name: str, request: Recover) -> VmView:
    return await services.firmware.recover(name, request.recovery_key.get_secret_value())


@router.post("/host/key/rotate")
async def rotate_host_key(services: With, _: Admin, request: HostKeyRotate) -> HostKeyRotation:
    return await services.firmware.rotate_host_key(request)
