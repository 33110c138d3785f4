"""What is printed: tables for people, the wire form for programs; control characters never get through."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


def columns_of(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Lines of left-aligned columns, each as wide as its widest cell: easy to read and to cut."""
    cells = [[each.upper() for each in columns], *([escape(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield line.rstrip()


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    for line in columns_of(columns, rows):
        sys.stdout.write(line + "\n")


def show(value: dict[str, Any], format_: Format, sheet: Callable[[dict[str, Any]], str]) -> None:
    """One thing: as it came, or as its sheet."""
    if format_ is Format.JSON:
        print_json(value)
    else:
        sys.stdout.write(sheet(value))


def show_list(
    items: list[dict[str, Any]],
    columns: Sequence[str],
    format_: Format,
    words: Mapping[str, Callable[[Any], str | None]] | None = None,
) -> None:
    """Things in a table; `words` says how the values of a column are told to people."""
    if format_ is Format.JSON:
        print_json(items)
        return

    def cell(item: dict[str, Any], column: str) -> Any:
        value = item.get(column)
        if words and column in words:
            value = words[column](value)
        return ", ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else value

    heads = [column.replace("_", " ") for column in columns]
    table(heads, ([cell(item, column) for column in columns] for item in items))


def say_deleted(kind: str, name: str, format_: Format) -> None:
    """What a deletion that ends at once answers: a word for people, `{"deleted": NAME}` for programs."""
    if format_ is Format.JSON:
        print_json({"deleted": name})
    else:
        say(f"{kind} {name!r} deleted")


def say(text: str) -> None:
    """A line for people, beside the output."""
    sys.stderr.write(escape(text) + "\n")
