"""`holdfast replica points`."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica points web"


def command(
    name: Annotated[str, typer.Argument(help="As `holdfast replica list` names it.")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """List the points of a replica that this host holds, the oldest first."""
    from urllib.parse import quote

    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import moment, size

    with connect() as client:
        items = client.wire("GET", f"/v1/replica/held/{quote(name, safe='')}/points")
    words: dict[str, Callable[[Any], str | None]] = {"taken": moment, "received": size}
    show_list(items, ("number", "taken", "consistency", "received", "open", "lost"), format_, words)
