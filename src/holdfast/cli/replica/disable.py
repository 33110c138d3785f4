"""`holdfast replica disable`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica disable web --to south"


def command(
    vm: Annotated[str, typer.Argument(help="The VM.")],
    to: Annotated[str | None, typer.Option(help="Of several peers the one that is meant.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Replicate a VM no more. What the other host holds stays there."""
    from urllib.parse import quote

    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/vms/{quote(vm, safe='')}/replica", query={"peer": to})
    if format_ is Format.JSON:
        print_json({"disabled": vm})
    else:
        say(f"VM {vm!r} is replicated no more")
