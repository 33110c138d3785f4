"""USB 3 with a tablet, so that the pointer is where the viewer's is, and devices of the host.

A device of the host was opened for QEMU, which needs no right to it.
"""

from collections.abc import Sequence
from typing import Any

from holdfast.machine.devices.ports import numbers
from holdfast.machine.devices.quoting import device, option
from holdfast.spec.vm import MAX_USB, UsbDevice

_TABLET_PORT = 1
_FIRST_SET = 100_000
"""Numbers of sets of descriptors; those below are the disks'."""


def usb(devices: Sequence[tuple[UsbDevice, int]] = ()) -> list[str]:
    """`devices` are the host's, each with an inheritable descriptor of its node."""
    ports = _TABLET_PORT + MAX_USB
    parts = device("qemu-xhci", id="usb", bus="pcie.0", addr="0x2", p2=ports, p3=ports)
    parts += device("usb-tablet", id="tablet", bus="usb.0", port=str(_TABLET_PORT))
    for each, fd in devices:
        parts += ["-add-fd", f"fd={fd},set={descriptor_set(each.id)}"]
        parts += option("-device", front(each.id))
    return parts


def device_id(usb_id: str) -> str:
    return f"usb-{usb_id}"


def descriptor_set(usb_id: str) -> int:
    return _FIRST_SET + _number(usb_id)


def front(usb_id: str) -> dict[str, Any]:
    """The device as `device_add` takes it."""
    return {
        "driver": "usb-host",
        "id": device_id(usb_id),
        "bus": "usb.0",
        "port": str(_TABLET_PORT + 1 + _number(usb_id)),
        "hostdevice": f"/dev/fdset/{descriptor_set(usb_id)}",
    }


def _number(usb_id: str) -> int:
    return numbers([usb_id], MAX_USB)[usb_id]
