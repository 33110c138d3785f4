"""Checkpoints for people: the tree, one of them, and the schedule."""

from collections.abc import Iterator
from typing import Any

from holdfast.cli.checkpoint_paths import duration
from holdfast.cli.sheets.sheet import Sheet
from holdfast.spec.units import format_size


def tree_rows(items: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, str, str]]:
    """A line a checkpoint, each below the one that it came from."""
    below: dict[str | None, list[dict[str, Any]]] = {}
    for item in items:
        below.setdefault(item["parent"], []).append(item)
    waiting = [(0, item) for item in reversed(below.get(None, []))]
    while waiting:
        depth, item = waiting.pop()
        name = "  " * depth + item["name"] + (" *" if item["current"] else "")
        yield name, item["type"], _time(item["created"]), format_size(item["size"]), item["notes"]
        waiting += [(depth + 1, each) for each in reversed(below.get(item["name"], []))]


def checkpoint_sheet(item: dict[str, Any]) -> str:
    sheet = Sheet()
    sheet.line("Name", item["name"])
    sheet.line("Parent", item["parent"])
    sheet.line("Type", item["type"])
    sheet.line("Created", _time(item["created"]))
    sheet.line("Memory", "yes" if item["has_memory"] else "no")
    sheet.line("Size", format_size(item["size"]))
    stall = item["stall_seconds"]
    sheet.line("Guest stood still", None if stall is None else f"{stall * 1000:.0f} ms")
    sheet.line("Made by", "schedule" if item["scheduled"] else "hand")
    sheet.line("Current", "yes" if item["current"] else "no")
    sheet.line_if("Notes", item["notes"])
    return sheet.text()


def schedule_sheet(schedule: dict[str, Any]) -> str:
    sheet = Sheet()
    every, age = schedule["every_seconds"], schedule["max_age_seconds"]
    sheet.line("Every", duration(every) if every else "never")
    sheet.line("Kept", schedule["keep"])
    sheet.line("Kept for", duration(age) if age else "any time")
    sheet.line("Type", schedule["type"])
    return sheet.text()


def _time(text: str) -> str:
    return text[:19].replace("T", " ")
