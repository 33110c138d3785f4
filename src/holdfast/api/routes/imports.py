"""VMs of other platforms: what an import would do, and the import. Files are sent or handed over before."""

from fastapi import APIRouter

from holdfast.api.access import Admin, With
from holdfast.spec.appliance import ImportFetch, ImportPlan, VmImport
from holdfast.spec.operation import Operation

router = APIRouter(prefix="/v1/imports", tags=["imports"])


@router.post("/plan")
async def plan_import(services: With, _: Admin, request: VmImport) -> ImportPlan:
    return await services.imports.plan(request)


@router.post("", status_code=202)
async def import_vm(services: With, caller: Admin, request: VmImport) -> Operation:
    return await services.imports.begin(request, caller.name)


@router.post("/fetch", status_code=202)
async def fetch_source(services: With, caller: Admin, request: ImportFetch) -> Operation:
    """Download a source; the result names an upload."""
    return await services.fetcher.fetch(request, caller.name)
