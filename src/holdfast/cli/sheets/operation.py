"""`operation show`."""

from typing import Any

from holdfast.cli.sheets.sheet import Sheet
from holdfast.cli.sheets.words import moment, pairs, percent


def operation_sheet(operation: dict[str, Any]) -> str:
    """An operation in wire form."""
    sheet = Sheet()
    sheet.line("Operation", operation["id"])
    sheet.line("Kind", operation["kind"])
    sheet.line("Subject", operation["subject"])
    sheet.line("State", operation["state"])
    if operation["ended"] is None:
        sheet.line("Phase", f"{operation['phase']} {operation['text']}".strip())
        sheet.line("Progress", percent(operation["progress"]))
    sheet.line_if("Asked by", operation["actor"])
    sheet.line("Began", moment(operation["created"]))
    sheet.line_if("Ended", moment(operation["ended"]))
    error = operation["error"]
    if error:
        sheet.line("Error", error.get("message"))
        sheet.line_if("Cure", error.get("cure"))
        sheet.line("Error id", error.get("id"))
    sheet.line_if("Result", pairs(operation["result"] or {}))
    return sheet.text()
