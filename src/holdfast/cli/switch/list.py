"""`holdfast switch list`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast switch list --format json"


def command(
    filter: Annotated[str | None, typer.Option(help="Part of the name.")] = None,
    sort: Annotated[str, typer.Option(help="A field; `-` before it: descending.")] = "name",
    format_: FormatOption = Format.TABLE,
) -> None:
    """List the switches."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect

    with connect() as client:
        items = list(client.every("/v1/switches", {"filter": filter, "sort": sort}))
    show_list(items, ("name", "type", "subnet", "interface"), format_)
