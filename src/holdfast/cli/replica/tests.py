"""`holdfast replica tests`."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica tests web --format json"


def command(
    name: Annotated[str | None, typer.Argument(help="One replica; none: all.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Report the tests of replicas on this host, the newest first."""
    from urllib.parse import quote

    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import duration, moment

    path = "/v1/replica/tests" + (f"?replica={quote(name, safe='')}" if name is not None else "")
    with connect() as client:
        items = client.wire("GET", path)
    words: dict[str, Callable[[Any], str | None]] = {
        "taken": moment,
        "started": moment,
        "ready_seconds": duration,
    }
    columns = (
        "replica",
        "started",
        "point",
        "taken",
        "phase",
        "verdict",
        "ready_seconds",
        "exit_code",
        "error",
    )
    show_list(items, columns, format_, words)
