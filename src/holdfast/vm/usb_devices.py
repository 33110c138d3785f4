"""USB devices of the host as a VM's machine gets them: found, seen to be unused, opened."""

import asyncio
import contextlib
import os

from holdfast.host.usb_devices import UsbHostDevice, find_usb, open_usb
from holdfast.spec.errors import Conflict, HoldfastError
from holdfast.spec.vm import UsbDevice, VmSpec
from holdfast.vm.rooms import Rooms


class UsbDeviceInUse(Conflict):
    id = "usb-device-in-use"


async def open_all(rooms: Rooms, vm_id: str, spec: VmSpec) -> list[tuple[UsbDevice, int]]:
    """Every device of a machine that starts, with a descriptor that the caller closes.

    Raises UsbDeviceNotFound, UsbDeviceAmbiguous, UsbDeviceNotUsable, UsbDeviceInUse.
    """
    opened: list[tuple[UsbDevice, int]] = []
    try:
        for device in spec.usb:
            found = await asyncio.to_thread(find_usb, device.host)
            await require_unused(rooms, vm_id, found)
            opened.append((device, await asyncio.to_thread(open_usb, found)))
    except BaseException:
        for _, fd in opened:
            os.close(fd)
        raise
    return opened


async def require_unused(rooms: Rooms, vm_id: str, found: UsbHostDevice) -> None:
    """Raises UsbDeviceInUse: another VM that runs has the device."""
    for record in await rooms.records.all():
        running = record.running_spec
        for device in running.usb if running and record.id != vm_id else ():
            with contextlib.suppress(HoldfastError):
                if (await asyncio.to_thread(find_usb, device.host)).place == found.place:
                    break
        else:
            continue
        raise UsbDeviceInUse(
            f"the USB device at {found.place} is in VM {record.name!r}, which runs",
            value=found.place,
            cure=f"Take it out there first: `holdfast usb remove {record.name} {device.id}`.",
        )
