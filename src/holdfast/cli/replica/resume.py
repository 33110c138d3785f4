"""`holdfast replica resume`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica resume web"


def command(
    vm: Annotated[str, typer.Argument(help="The VM.")],
    to: Annotated[str | None, typer.Option(help="Of several peers the one that is meant.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Go on replicating a VM that was paused. Only what changed is sent."""
    from urllib.parse import quote

    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    with connect() as client:
        made = client.wire("POST", f"/v1/vms/{quote(vm, safe='')}/replica/resume", query={"peer": to})
    if format_ is Format.JSON:
        print_json(made)
    else:
        say(f"VM {made['vm']!r} is sent to {made['peer']!r} again")
