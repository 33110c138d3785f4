"""Network cards of a VM; each answers with where the card is: machine, guest, next start."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Viewer, With
from holdfast.spec.devices import NicChange, NicDone, NicView
from holdfast.spec.vm_requests import NewNic

router = APIRouter(prefix="/v1/vms/{name}/nics", tags=["devices"])


@router.get("")
async def list_nics(services: With, _: Viewer, name: str) -> tuple[NicView, ...]:
    return await services.nics.list(name)


@router.post("")
async def add_nic(services: With, _: Admin, name: str, nic: NewNic) -> NicDone:
    return await services.nics.add(name, nic)


@router.patch("/{nic}")
async def change_nic(services: With, _: Admin, name: str, nic: str, change: NicChange) -> NicDone:
    return await services.nics.change(name, nic, change)


@router.delete("/{nic}")
async def remove_nic(services: With, _: Admin, name: str, nic: str, force: bool = False) -> NicDone:
    return await services.nics.remove(name, nic, force)
