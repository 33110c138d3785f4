"""`pool show`."""

from typing import Any

from holdfast.cli.sheets.sheet import Sheet
from holdfast.cli.sheets.words import moment, size


def pool_sheet(pool: dict[str, Any]) -> str:
    """A pool in wire form."""
    sheet = Sheet()
    sheet.line("Name", pool["name"])
    sheet.line("Kind", pool["kind"])
    sheet.line("On", pool["target"])
    sheet.line("Health", f"{pool['health']}: {pool['reason']}" if pool["reason"] else pool["health"])
    sheet.line("Capacity", size(pool["capacity"]))
    sheet.line("Used", size(pool["used"]))
    sheet.line("Free", size(pool["free"]))
    sheet.line("Provisioned", size(pool["provisioned"]))
    sheet.line_if("New disks", pool["spec"].get("format"))
    sheet.line_if("Created", moment(pool["created"]))
    rows = (
        (each["vm"], each["disk"], size(each["size"]), size(each["used"]), ", ".join(each["names"]))
        for each in pool["volumes"]
    )
    sheet.rows("Disks", ("vm", "disk", "size", "used", "volumes"), rows)
    return sheet.text()
