"""`image show`."""

from typing import Any

from holdfast.cli.sheets.sheet import Sheet
from holdfast.cli.sheets.words import moment, size


def image_sheet(image: dict[str, Any]) -> str:
    """An image in wire form."""
    sheet = Sheet()
    sheet.line("Names", ", ".join(image["names"]))
    sheet.line("Kind", image["kind"])
    sheet.line("Size", f"{size(image['virtual_size'])} for guests, {size(image['stored_size'])} stored")
    sheet.line("Origin", f"{image['origin']} from {image['source']}" if image["source"] else image["origin"])
    sheet.line("Created", moment(image["created"]))
    sheet.line("Digest", image["digest"])
    return sheet.text()
