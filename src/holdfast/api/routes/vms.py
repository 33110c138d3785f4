"""VMs: long verbs answer 202 with an Operation, short ones with the VM as it now is."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from holdfast.api.access import Admin, Operator, Paging, Viewer, With
from holdfast.api.services import LogSource
from holdfast.spec.operation import Operation
from holdfast.spec.paging import Page
from holdfast.spec.vm import VmName, VmState
from holdfast.spec.vm_requests import ExecRequest, ExecResult, VmChange, VmClone, VmCreate
from holdfast.spec.vm_view import VmSummary, VmView

router = APIRouter(prefix="/v1/vms", tags=["vms"])
Patience = Annotated[float, Query(gt=0, le=3600, description="Seconds until the guest must be off.")]


@router.get("")
async def list_vms(
    services: With, _: Viewer, paging: Paging, state: VmState | None = None
) -> Page[VmSummary]:
    return await services.vms.list(paging, state)


@router.post("", status_code=202)
async def create_vm(services: With, caller: Admin, request: VmCreate) -> Operation:
    return await services.vms.create(request, caller.name)


@router.get("/{name}")
async def show_vm(services: With, _: Viewer, name: str) -> VmView:
    return await services.vms.show(name)


@router.patch("/{name}")
async def change_vm(services: With, _: Admin, name: str, change: VmChange) -> VmView:
    return await services.vms.change(name, change)


@router.delete("/{name}", status_code=202)
async def delete_vm(services: With, caller: Admin, name: str, force: bool = False) -> Operation:
    return await services.vms.delete(name, force, caller.name)


@router.post("/{name}/start", status_code=202)
async def start_vm(services: With, caller: Operator, name: str) -> Operation:
    return await services.vms.start(name, caller.name)


@router.post("/{name}/stop", status_code=202)
async def stop_vm(services: With, caller: Operator, name: str, timeout_seconds: Patience = 90.0) -> Operation:
    return await services.vms.stop(name, timeout_seconds, caller.name)


@router.post("/{name}/restart", status_code=202)
async def restart_vm(
    services: With, caller: Operator, name: str, timeout_seconds: Patience = 90.0
) -> Operation:
    return await services.vms.restart(name, timeout_seconds, caller.name)


@router.post("/{name}/save", status_code=202)
async def save_vm(services: With, caller: Operator, name: str) -> Operation:
    return await services.vms.save(name, caller.name)


@router.post("/{name}/clone", status_code=202)
async def clone_vm(services: With, caller: Admin, name: str, request: VmClone) -> Operation:
    return await services.vms.clone(name, request, caller.name)


@router.post("/{name}/kill")
async def kill_vm(services: With, _: Operator, name: str) -> VmView:
    return await services.vms.kill(name)


@router.post("/{name}/pause")
async def pause_vm(services: With, _: Operator, name: str) -> VmView:
    return await services.vms.pause(name)


@router.post("/{name}/resume")
async def resume_vm(services: With, _: Operator, name: str) -> VmView:
    return await services.vms.resume(name)


@router.post("/{name}/rename")
async def rename_vm(services: With, _: Admin, name: str, request: VmName) -> VmView:
    return await services.vms.rename(name, request.name)


@router.post("/{name}/exec")
async def execute(services: With, _: Operator, name: str, request: ExecRequest) -> ExecResult:
    return await services.vms.execute(name, request)


@router.get("/{name}/screenshot", response_class=Response, responses={200: {"content": {"image/png": {}}}})
async def screenshot(services: With, _: Operator, name: str) -> Response:
    return Response(await services.vms.screenshot(name), media_type="image/png")


@router.get("/{name}/log")
async def log(
    services: With,
    _: Viewer,
    name: str,
    lines: Annotated[int, Query(ge=1, le=10_000)] = 100,
    source: LogSource = "console",
) -> list[str]:
    return await services.vms.log(name, lines, source)
