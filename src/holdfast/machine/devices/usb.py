"""USB 3 with a tablet, so that the pointer is where the viewer's is."""

from holdfast.machine.devices.quoting import device


def usb() -> list[str]:
    return device("qemu-xhci", id="usb", bus="pcie.0", addr="0x2") + device(
        "usb-tablet", id="tablet", bus="usb.0"
    )
