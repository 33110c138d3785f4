"""The lines of a sheet: titled values, then tables and lists under headings. Empty parts are left out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.cli.output import columns_of, escape

NOTHING = "-"


@dataclass
class Sheet:
    """Built up by `line`, `rows` and `list`; `text` gives it, with no control characters in it."""

    _lines: list[tuple[str, str]] = field(default_factory=list)
    _parts: list[str] = field(default_factory=list)

    def line(self, title: str, value: Any) -> None:
        """One `Title  value`; nothing known is a dash."""
        self._lines.append((title, NOTHING if value in (None, "") else escape(value)))

    def line_if(self, title: str, value: Any) -> None:
        """A line only where there is a value."""
        if value not in (None, ""):
            self.line(title, value)

    def rows(self, heading: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table under a heading; columns in which no row has anything are left out."""
        cells = [[NOTHING if cell in (None, "") else cell for cell in row] for row in rows]
        if not cells:
            return
        used = [index for index in range(len(columns)) if any(row[index] != NOTHING for row in cells)]
        chosen = [[row[index] for index in used] for row in cells]
        self._part(heading, columns_of([columns[index] for index in used], chosen))

    def list(self, heading: str, items: Iterable[Any]) -> None:
        """One item a line under a heading."""
        shown = [escape(item) for item in items]
        if shown:
            self._part(heading, shown)

    def _part(self, heading: str, lines: Iterable[str]) -> None:
        self._parts.append("\n".join([heading, *(f"  {line}" for line in lines)]))

    def text(self) -> str:
        width = max((len(title) for title, _ in self._lines), default=0)
        top = "\n".join(f"{title.ljust(width)}  {value}" for title, value in self._lines)
        return "\n\n".join([top, *self._parts] if top else self._parts) + "\n"
