"""Names of PCI vendors and devices from the pci.ids file of hwdata, where the host has one."""

from collections.abc import Iterable
from pathlib import Path

_PLACES = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")


def read_pci_names(root: Path, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], tuple[str, str]]:
    """Vendor and device name of each wanted (vendor id, device id); hexadecimal where unknown.

    The format is that of pci-ids.ucw.cz: a vendor at the line's start, its devices one tab in.
    """
    pairs = set(wanted)
    vendors = {vendor for vendor, _ in pairs}
    vendor_names: dict[int, str] = {}
    device_names: dict[tuple[int, int], str] = {}
    vendor = -1
    for line in _lines(root):
        if line.startswith(("#", "\t\t")) or not line.strip():
            continue
        if line.startswith("C "):  # device classes follow: no vendors any more
            break
        code, _, name = line.strip().partition("  ")
        try:
            number = int(code, 16)
        except ValueError:
            continue
        if not line.startswith("\t"):
            vendor = number
            if vendor in vendors:
                vendor_names[vendor] = name
        elif (vendor, number) in pairs:
            device_names[vendor, number] = name
    return {
        pair: (vendor_names.get(pair[0], f"0x{pair[0]:04x}"), device_names.get(pair, f"0x{pair[1]:04x}"))
        for pair in pairs
    }


def _lines(root: Path) -> list[str]:
    for place in _PLACES:
        try:
            return (root / place).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
    return []
