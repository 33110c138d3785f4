"""What is printed: tables for people, the wire form for programs; control characters never get through."""

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="A table for people, or the wire form as JSON.")
]


def escape(value: Any, keep: str = "") -> str:
    """Text without control, bidirectional and other invisible characters; they are shown as escapes."""
    text = "" if value is None else str(value)
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape", "replace").decode()
        for each in text
    )


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Left-aligned columns, each as wide as its widest cell: easy to read and to cut."""
    cells = [[each.upper() for each in columns], *([escape(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


def fields(value: dict[str, Any], prefix: str = "") -> None:
    """A nested value, one `name: value` a line."""
    for key, each in value.items():
        if isinstance(each, dict):
            fields(each, f"{prefix}{key}.")
        elif isinstance(each, list) and each and isinstance(each[0], dict):
            for index, item in enumerate(each):
                fields(item, f"{prefix}{key}.{index}.")
        else:
            shown = ", ".join(map(str, each)) if isinstance(each, list) else each
            sys.stdout.write(f"{prefix}{key}: {escape('-' if shown in (None, '') else shown)}\n")


def show(value: Any, format_: Format) -> None:
    if format_ is Format.JSON:
        print_json(value)
    else:
        fields(value)


def show_list(items: list[dict[str, Any]], columns: Sequence[str], format_: Format) -> None:
    if format_ is Format.JSON:
        print_json(items)
        return

    def cell(value: Any) -> Any:
        return ",".join(map(str, value)) if isinstance(value, list) else "-" if value is None else value

    table(columns, ([cell(item.get(column)) for column in columns] for item in items))


def say(text: str) -> None:
    """A line for people, beside the output."""
    sys.stderr.write(escape(text) + "\n")
