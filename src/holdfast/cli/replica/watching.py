"""A table that is written over each second on a terminal; elsewhere a row for each thing, with the time."""

import sys
import time
from collections.abc import Callable
from typing import Any

from holdfast.cli.output import Format, columns_of, escape

EVERY = 1.0
"""Seconds."""


def watch(ask: Callable[[], list[dict[str, Any]]], format_: Format) -> None:
    """Show what `ask` gives, until Ctrl-C; as JSON, an array a line."""
    if format_ is Format.JSON:
        _each(lambda: _json(ask()))
    elif sys.stdout.isatty():
        _in_place(ask)
    else:
        _rows(ask)


def _each(show: Callable[[], None]) -> None:
    following = time.monotonic()
    while True:
        show()
        sys.stdout.flush()
        following = max(following + EVERY, time.monotonic())
        time.sleep(following - time.monotonic())


def _json(items: list[dict[str, Any]]) -> None:
    import json

    sys.stdout.write(json.dumps(items, ensure_ascii=True) + "\n")


def _in_place(ask: Callable[[], list[dict[str, Any]]]) -> None:
    """Lines are cut at the terminal's width: one that wraps would not be written over whole."""
    import shutil

    from holdfast.cli.sheets.replica import status_lines

    drawn = 0

    def show() -> None:
        nonlocal drawn
        width, height = shutil.get_terminal_size()
        lines = [line[: width - 1] for line in status_lines(ask())][: height - 1]
        up = f"\x1b[{drawn}A" if drawn else ""
        sys.stdout.write(up + "".join(f"\r{line}\x1b[K\n" for line in lines) + "\x1b[J")
        drawn = len(lines)

    _each(show)


def _rows(ask: Callable[[], list[dict[str, Any]]]) -> None:
    from holdfast.cli.sheets.replica import COLUMNS, status_row

    headed = False

    def show() -> None:
        nonlocal headed
        now = time.strftime("%H:%M:%S")
        lines = list(columns_of(("time", *COLUMNS), ([now, *status_row(each)] for each in ask())))
        for line in lines if not headed else lines[1:]:
            sys.stdout.write(escape(line) + "\n")
        headed = True

    _each(show)
