"""USB devices of the host in a VM; each answers with where the device is: machine and next start."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Viewer, With
from holdfast.spec.devices import NewUsb, UsbView

router = APIRouter(prefix="/v1/vms/{name}/usb", tags=["devices"])


@router.get("")
async def list_usb(services: With, _: Viewer, name: str) -> tuple[UsbView, ...]:
    return await services.usb.list(name)


@router.post("")
async def add_usb(services: With, _: Admin, name: str, device: NewUsb) -> UsbView:
    return await services.usb.add(name, device)


@router.delete("/{device}")
async def remove_usb(services: With, _: Admin, name: str, device: str) -> UsbView:
    return await services.usb.remove(name, device)
