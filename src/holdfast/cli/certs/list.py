"""`holdfast certs list`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast certs list"


def command(
    filter: Annotated[str | None, typer.Option(help="Part of the name, or a pattern with * and ?.")] = None,
    sort: Annotated[str, typer.Option(help="A field of VMs; `-` before it: descending.")] = "name",
    format_: FormatOption = Format.TABLE,
) -> None:
    """How each VM stands with the certificates of 2011 and 2023."""
    from holdfast.cli.output import print_json, table
    from holdfast.cli.session import connect

    with connect() as client:
        items = list(client.every("/v1/certs", {"limit": 100, "filter": filter, "sort": sort}))
    if format_ is Format.JSON:
        print_json(items)
        return
    rows = (
        (
            vm["vm"],
            vm["status"] + (", change at next start" if vm["pending"] else ""),
            ", ".join(vm["loader_signers"]) or "-",
            ", ".join(vm["missing"]) or "-",
            len(vm["expired"]) or "-",
        )
        for vm in items
    )
    table(("vm", "status", "loader signed by", "missing", "expired"), rows)
