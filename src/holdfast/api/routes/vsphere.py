"""VMs of vSphere: what a server has, what an import would do, and the import. Passwords come in the body."""

from fastapi import APIRouter

from holdfast.api.access import Admin, With
from holdfast.spec.appliance import ImportPlan
from holdfast.spec.operation import Operation
from holdfast.spec.vsphere import VsphereAccess, VsphereImport, VsphereVm

router = APIRouter(prefix="/v1/imports/vsphere", tags=["imports"])


@router.post("/list")
async def list_vsphere(services: With, _: Admin, access: VsphereAccess) -> list[VsphereVm]:
    return await services.vsphere.inventory(access)


@router.post("/plan")
async def plan_vsphere(services: With, _: Admin, request: VsphereImport) -> ImportPlan:
    return await services.vsphere.plan(request)


@router.post("", status_code=202)
async def import_vsphere(services: With, caller: Admin, request: VsphereImport) -> Operation:
    return await services.vsphere.begin(request, caller.name)
