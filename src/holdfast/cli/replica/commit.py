"""`holdfast replica commit`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica commit web"


def command(
    name: Annotated[str, typer.Argument(help="The replica that failed over.")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Make a failover final: other points are dropped, and the VM is replicated back."""
    from urllib.parse import quote

    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    with connect() as client:
        found = client.wire("POST", f"/v1/replica/held/{quote(name, safe='')}/commit")
    if format_ is Format.JSON:
        print_json(found)
    else:
        say(f"VM {found['name']!r} is this host's; it is replicated back once the other host is reached")
