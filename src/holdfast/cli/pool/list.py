"""`holdfast pool list`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast pool list --format json"


def command(
    filter: Annotated[str | None, typer.Option(help="Part of the name.")] = None,
    sort: Annotated[str, typer.Option(help="A field; `-` before it: descending.")] = "name",
    format_: FormatOption = Format.TABLE,
) -> None:
    """List the pools; `local` is the VMs' own folders."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import size

    with connect() as client:
        items = list(client.every("/v1/pools", {"filter": filter, "sort": sort}))
    columns = ("name", "kind", "health", "capacity", "free", "provisioned", "target")
    show_list(items, columns, format_, dict.fromkeys(("capacity", "free", "provisioned"), size))
