"""Secure Boot's certificates: how VMs stand, what an update would do, and the update itself."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Paging, Viewer, With
from holdfast.spec.certificates import CertsEnrol, CertsUpdate, KeyPlans, VmCertificates
from holdfast.spec.operation import Operation
from holdfast.spec.paging import Page

router = APIRouter(prefix="/v1", tags=["certificates"])


@router.get("/certs")
async def list_certificates(services: With, _: Viewer, paging: Paging) -> Page[VmCertificates]:
    return await services.certificates.list(paging)


@router.post("/certs/plan")
async def plan_certificates(services: With, _: Viewer, request: CertsUpdate) -> KeyPlans:
    """Changes nothing."""
    return await services.certificates.plan(request)


@router.post("/certs/update", status_code=202)
async def update_certificates(services: With, caller: Admin, request: CertsUpdate) -> Operation:
    return await services.certificates.update(request, caller.name)


@router.get("/vms/{name}/certs")
async def show_certificates(services: With, _: Viewer, name: str) -> VmCertificates:
    return await services.certificates.show(name)


@router.post("/vms/{name}/certs/rollback", status_code=202)
async def roll_back_certificates(services: With, caller: Admin, name: str) -> Operation:
    return await services.certificates.rollback(name, caller.name)


@router.post("/vms/{name}/certs/enrol", status_code=202)
async def enrol_certificates(services: With, caller: Admin, name: str, request: CertsEnrol) -> Operation:
    return await services.certificates.enrol(name, request, caller.name)
