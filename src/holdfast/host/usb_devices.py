"""USB devices of the host that a VM can be given: found in sysfs, opened through usbfs.

Formats: Linux, Documentation/ABI/testing/sysfs-bus-usb; names of devices and /dev/bus/usb/BBB/DDD:
Documentation/driver-api/usb/usb.rst. What a device says of itself is untrusted.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from holdfast.spec.errors import Conflict, NotFound, Unsupported

_NAME = re.compile(r"(\d{1,3})-(\d{1,3}(?:\.\d{1,3}){0,6})", re.ASCII)
_HUB = "09"  # bDeviceClass (USB 2.0, 9.6.1)
_LONGEST = 256


class UsbDeviceNotFound(NotFound):
    id = "usb-device-not-found"


class UsbDeviceAmbiguous(Conflict):
    id = "usb-device-ambiguous"


class UsbDeviceNotUsable(Unsupported):
    id = "usb-device-not-usable"


@dataclass(frozen=True)
class UsbHostDevice:
    bus: int
    port: str
    """Ports on the way from the bus's root, such as `2.1`."""
    address: int
    """Its number on the bus, another each time that it is plugged in."""
    model: str
    """`VENDOR:PRODUCT`, four lower-case hex digits each."""
    name: str
    """By its own word, printable letters only."""

    @property
    def place(self) -> str:
        return f"{self.bus}.{self.port}"


def usb_devices(root: Path = Path("/")) -> list[UsbHostDevice]:
    """All but hubs, in the order of their places."""
    found = []
    for folder in sorted((root / "sys/bus/usb/devices").glob("*-*")):
        match = _NAME.fullmatch(folder.name)
        if match and _text(folder, "bDeviceClass") != _HUB:
            model = f"{_text(folder, 'idVendor')}:{_text(folder, 'idProduct')}".lower()
            address = _text(folder, "devnum")
            if address.isdecimal() and re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", model):
                name = " ".join(filter(None, (_text(folder, "manufacturer"), _text(folder, "product"))))
                found.append(UsbHostDevice(int(match[1]), match[2], int(address), model, name))
    return found


def find_usb(wanted: str, root: Path = Path("/")) -> UsbHostDevice:
    """The one device that `VENDOR:PRODUCT` or `BUS.PORT` names.

    Raises:
        UsbDeviceNotFound, UsbDeviceAmbiguous.
    """
    found = [each for each in usb_devices(root) if wanted.lower() in (each.model, each.place)]
    if not found:
        raise UsbDeviceNotFound(
            f"this host has no USB device {wanted!r}",
            value=wanted,
            cure="Plug it in; see what there is with `lsusb` and `lsusb -t`.",
        )
    if len(found) > 1:
        places = ", ".join(each.place for each in found)
        raise UsbDeviceAmbiguous(
            f"this host has {len(found)} USB devices {wanted!r}, at {places}",
            value=wanted,
            cure=f"Name the one by its place, such as {found[0].place}.",
        )
    return found[0]


def open_usb(device: UsbHostDevice, root: Path = Path("/")) -> int:
    """A descriptor of its node for reading and writing, which the caller closes.

    Whoever gets a copy needs no right to the node. Raises UsbDeviceNotUsable.
    """
    path = root / f"dev/bus/usb/{device.bus:03}/{device.address:03}"
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise UsbDeviceNotUsable(
            f"the USB device at {device.place} cannot be opened: {error.strerror}",
            value=device.place,
            cure="Run the daemon as root, or give its user the right to the device by a rule of udev.",
        ) from error


def _text(folder: Path, name: str) -> str:
    try:
        with (folder / name).open("rb") as file:
            text = file.read(_LONGEST).decode(errors="replace")
    except OSError:
        return ""
    return "".join(letter for letter in text if letter.isprintable()).strip()
