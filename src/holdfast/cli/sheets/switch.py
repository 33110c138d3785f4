"""`switch show`."""

from typing import Any

from holdfast.cli.sheets.sheet import Sheet

_MEANING = {
    "private": "VMs among themselves",
    "internal": "VMs and this host, with DHCP, names and NAT to the outside",
    "external": "joined to a physical interface",
    "user": "outgoing connections of each VM by itself; needs no privilege",
}


def switch_sheet(switch: dict[str, Any]) -> str:
    """A switch in wire form."""
    sheet = Sheet()
    sheet.line("Name", switch["name"])
    meaning = _MEANING.get(switch["type"])
    sheet.line("Type", f"{switch['type']}: {meaning}" if meaning else switch["type"])
    sheet.line_if("Subnet", switch["subnet"])
    sheet.line_if("Interface", switch["interface"])
    return sheet.text()
