"""`holdfast vm list`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast vm list --state running --sort=-memory"


def command(
    filter: Annotated[str | None, typer.Option(help="Part of the name, or a pattern with * and ?.")] = None,
    state: Annotated[str | None, typer.Option(help="Only VMs in this state.")] = None,
    sort: Annotated[str, typer.Option(help="A field; `-` before it: descending.")] = "name",
    format_: FormatOption = Format.TABLE,
) -> None:
    """List the VMs of this host."""
    from holdfast.cli.output import print_json, table
    from holdfast.cli.session import connect
    from holdfast.spec.units import format_size

    with connect() as client:
        items = list(client.every("/v1/vms", {"filter": filter, "state": state, "sort": sort}))
    if format_ is Format.JSON:
        print_json(items)
        return
    rows = (
        (
            vm["name"],
            vm["state"],
            vm["cpus"],
            format_size(vm["memory"]),
            vm["acceleration"] or "-",
            ", ".join(vm["addresses"]) or "-",
        )
        for vm in items
    )
    table(("name", "state", "cpus", "memory", "acceleration", "addresses"), rows)
