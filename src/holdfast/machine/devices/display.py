"""The screen: a plain VGA card, seen through VNC on a socket."""

from pathlib import Path

from holdfast.machine.devices.quoting import device, quoted


def display(socket: Path) -> list[str]:
    card = device("VGA", id="video0", bus="pcie.0", addr="0x1")
    return ["-display", "none", "-vnc", f"unix:{quoted(socket)}", *card]
