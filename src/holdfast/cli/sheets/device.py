"""Devices that come and go: where one is, for people."""

from typing import Any
from urllib.parse import quote

from holdfast.cli.sheets.sheet import Sheet

_SEEN = {True: "yes", False: "no", None: "not known"}


def _yes(value: bool | None) -> str:
    return _SEEN[value]


WORDS = {
    "plugged": _yes,
    "guest_sees": _yes,
    "after_next_start": _yes,
    "switch": lambda value: value or "user-mode network",
}
"""How `show_list` tells the columns of a device."""


def nic_path(nic: str) -> str:
    return f"nics/{quote(nic, safe='')}"


def where(sheet: Sheet, device: dict[str, Any]) -> None:
    """The lines that every device has: machine, guest, next start."""
    sheet.line("Plugged", _yes(device["plugged"]))
    sheet.line("Guest sees", _yes(device["guest_sees"]))
    sheet.line("Next start", _yes(device["after_next_start"]))
    sheet.line("Note", device["note"])


def nic_sheet(nic: dict[str, Any]) -> str:
    sheet = Sheet()
    sheet.line("NIC", nic["id"])
    sheet.line("Switch", nic["switch"] or "user-mode network")
    sheet.line("VLAN", nic["vlan"])
    sheet.line("MAC", nic["mac"])
    where(sheet, nic)
    sheet.line("Free ports", nic["free_ports"])
    return sheet.text()


def usb_path(device: str) -> str:
    return f"usb/{quote(device, safe='')}"


def usb_sheet(device: dict[str, Any]) -> str:
    sheet = Sheet()
    sheet.line("USB device", device["id"])
    sheet.line("Of the host", device["device"])
    where(sheet, device)
    return sheet.text()
