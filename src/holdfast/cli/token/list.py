"""`holdfast token list`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast token list --format json"


def command(
    filter: Annotated[str | None, typer.Option(help="Part of the name.")] = None,
    sort: Annotated[str, typer.Option(help="A field; `-` before it: descending.")] = "name",
    format_: FormatOption = Format.TABLE,
) -> None:
    """List the tokens."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import moment

    with connect() as client:
        items = list(client.every("/v1/tokens", {"filter": filter, "sort": sort}))
    times = {"created": moment, "expires": moment, "last_used": moment}
    show_list(items, ("name", "role", "created", "expires", "last_used"), format_, times)
