"""Disks for people: one, a list of them, and what became of work on one."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from holdfast.cli.sheets.sheet import Sheet
from holdfast.cli.sheets.words import short_digest, size
from holdfast.spec.units import format_size

_RATES = (
    ("iops", "requests a second"),
    ("iops_read", "reads a second"),
    ("iops_write", "writes a second"),
    ("bandwidth", "a second"),
    ("bandwidth_read", "a second read"),
    ("bandwidth_write", "a second written"),
)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


COLUMNS = ("id", "bus", "size", "stored", "pool", "limits", "plugged", "after_next_start")
WORDS: dict[str, Callable[[Any], str | None]] = {
    "size": size,
    "stored": size,
    "limits": lambda limits: limits_in_words(limits) or None,
    "plugged": _yes,
    "after_next_start": _yes,
}
"""How `show_list` tells the columns of a disk."""


def disk_path(disk: str, verb: str = "") -> str:
    return f"disks/{quote(disk, safe='')}" + (f"/{verb}" if verb else "")


def limits_in_words(limits: dict[str, Any]) -> str:
    parts = [
        f"{size(limits[key]) if key.startswith('bandwidth') else limits[key]} {word}"
        for key, word in _RATES
        if limits[key] is not None
    ]
    bursts = [
        format_size(limits[key]) if key == "burst_bandwidth" else f"{limits[key]} requests"
        for key in ("burst_iops", "burst_bandwidth")
        if limits[key] is not None
    ]
    if bursts:
        parts.append(f"for {limits['burst_seconds']} s up to {' and '.join(bursts)} a second")
    return ", ".join(parts)


def disk_sheet(disk: dict[str, Any]) -> str:
    sheet = Sheet()
    sheet.line("Disk", disk["id"])
    sheet.line("Bus", disk["bus"])
    sheet.line("Size", size(disk["size"]))
    if disk["device"] is None:
        sheet.line("Stored", size(disk["stored"]))
        sheet.line("Pool", disk["pool"] or "the VM's own folder")
        sheet.line("Volumes", ", ".join(disk["layers"]))
    else:
        sheet.line("Device", disk["device"])
    sheet.line_if("Image", short_digest(disk["image"]) if disk["image"] else None)
    sheet.line("Limits", limits_in_words(disk["limits"]) or "none")
    sheet.line("Plugged", _yes(disk["plugged"]))
    sheet.line("Next start", _yes(disk["after_next_start"]))
    sheet.list("After the next start", (f"{key}: {value}" for key, value in disk["pending"].items()))
    sheet.list("Notices", disk["notices"])
    return sheet.text()


def done(kind: str, result: dict[str, Any]) -> Iterator[str]:
    """Lines on what became of an operation on a disk."""
    sees = result.get("guest_sees")
    if kind == "disk.add":
        disk = result["disk"]["id"]
        name = f" as {result['guest_name']}" if result.get("guest_name") else ""
        yield f"{disk} added{_seen(sees, f'the guest sees it{name}', 'the guest does not see it')}"
        yield from result["notices"]
    elif kind == "disk.grow":
        told = _seen(sees, "the guest sees it", "the guest does not see the new size yet")
        yield f"{result['disk_id']} has {size(result['size'])}{told}"
    elif kind == "disk.move":
        yield f"{result['disk_id']} lies in the pool {result['pool']}"
    elif kind == "disk.remove":
        if result["waits"]:
            yield f"{result['disk_id']} is gone from the next start on; the guest has yet to let go of it"
        elif sees:
            yield f"{result['disk_id']} removed; the guest still shows it"
        if result.get("kept"):
            yield f"Its volumes are kept in {result['kept']}"


def _seen(sees: bool | None, yes: str, no: str) -> str:
    return "" if sees is None else f"; {yes if sees else no}"
