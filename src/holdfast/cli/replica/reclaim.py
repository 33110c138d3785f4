"""`holdfast replica reclaim`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica reclaim web --yes"


def command(
    name: VmArgument,
    yes: Annotated[bool, typer.Option("--yes", help="The VM over there is gone, or is given up.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Let a VM that failed over start here again: the one over there is gone for good, or given up."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    if not yes:
        raise typer.BadParameter("what the VM over there has changed since is given up; add --yes")
    with connect() as client:
        found = client.wire("POST", vm_path(name, "replica/reclaim"))
    if format_ is Format.JSON:
        print_json(found)
    else:
        say(f"VM {found['name']!r} may start here again")
