"""`holdfast image list`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast image list --format json"


def command(
    filter: Annotated[str | None, typer.Option(help="Part of the name.")] = None,
    sort: Annotated[str, typer.Option(help="A field; `-` before it: descending.")] = "name",
    format_: FormatOption = Format.TABLE,
) -> None:
    """List the images."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import size

    with connect() as client:
        items = list(client.every("/v1/images", {"filter": filter, "sort": sort}))
    columns = ("names", "kind", "origin", "virtual_size", "stored_size", "source")
    show_list(items, columns, format_, {"virtual_size": size, "stored_size": size})
