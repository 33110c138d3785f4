"""`holdfast operation list`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast operation list --format json"


def command(
    filter: Annotated[str | None, typer.Option(help="Part of the name.")] = None,
    sort: Annotated[str, typer.Option(help="A field; `-` before it: descending.")] = "name",
    format_: FormatOption = Format.TABLE,
) -> None:
    """List operations, newest first."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import moment, percent

    with connect() as client:
        items = list(client.every("/v1/operations", {"filter": filter, "sort": sort}))
    if format_ is Format.TABLE:
        # The last step of what has ended tells nothing.
        items = [{**each, "phase": None if each["ended"] else each["phase"]} for each in items]
    columns = ("id", "kind", "subject", "state", "progress", "phase", "created")
    show_list(items, columns, format_, {"progress": percent, "created": moment})
