"""`vm import --plan`: what maps, what changes, what is lost."""

from typing import Any

from holdfast.cli.sheets.sheet import Sheet
from holdfast.spec.units import format_size


def _taken(state: dict[str, Any]) -> str:
    return "taken along" if state["taken"] else "NOT taken along"


def _signed(signature: dict[str, Any] | None) -> str:
    if signature is None:
        return ""
    state = "holds" if signature["fits"] else f"does NOT hold: {signature['text']}"
    known = "known" if signature["known"] else "NOT known"
    return f"{signature['subject']} (issued by {signature['issuer']}), {known} here; the signature {state}"


def _disk(disk: dict[str, Any]) -> list[object]:
    data = None if disk["data"] is None else format_size(disk["data"])
    described = (disk[key] for key in ("id", "source", "file", "format"))
    return [*described, format_size(disk["size"]), data, disk["bus"], disk["pool"]]


def plan_sheet(plan: dict[str, Any]) -> str:
    """An ImportPlan in wire form."""
    sheet = Sheet()
    sheet.line("Name", plan["name"])
    sheet.line("Importable", "yes" if plan["importable"] else "NO")
    sheet.line("From", f"{plan['kind']} {plan['dialect']}".strip())
    product = plan.get("product") or {}
    words = (product.get(key) for key in ("vendor", "name", "version"))
    sheet.line_if("Product", " ".join(filter(None, words)))
    sheet.line("CPUs", plan["cpus"])
    sheet.line("Memory", format_size(plan["memory"]))
    sheet.line("Guest", plan["os"])
    sheet.line("Firmware", f"{plan['firmware'] or 'not said'} there, uefi here")
    sheet.line("Secure Boot", "on" if plan["secure_boot"] else "off")
    sheet.line("TPM", "yes" if plan["tpm"] else "no")
    state = plan["firmware_state"]
    sheet.line_if("Firmware state", f"{state['file']}, {_taken(state)}" if state else "")
    sheet.line("Manifest", f"{plan['manifest']}, verified while it is read" if plan["manifest"] else None)
    sheet.line_if("Signed by", _signed(plan["signature"]))
    for room in plan["space"]:
        free = "" if room["free"] is None else f" of {format_size(room['free'])} free"
        sheet.line("Space", f"{format_size(room['needed'])}{free}, pool {room['pool']}")
    sheet.line("Time", f"about {plan['seconds']} s")
    sheet.rows(
        "Disks",
        ("id", "source", "file", "format", "size", "data", "bus", "pool"),
        map(_disk, plan["disks"]),
    )
    sheet.rows(
        "Networks",
        ("id", "network", "switch", "vlan", "mac"),
        (
            [
                each["id"],
                each["network"],
                each["switch"] or "(user-mode)",
                each["vlan"],
                each["mac"] or "(a new one)",
            ]
            for each in plan["nics"]
        ),
    )
    sheet.rows(
        "Findings",
        ("severity", "id", "text"),
        ([each["severity"], each["id"], each["text"]] for each in plan["findings"]),
    )
    if plan["eulas"]:
        sheet.list(
            "Licence agreements (shown whole with --format json)", [text[:400] for text in plan["eulas"]]
        )
    return sheet.text()
