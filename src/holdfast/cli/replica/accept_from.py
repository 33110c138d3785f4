"""`holdfast replica accept-from`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica accept-from web --peer south"


def command(
    name: Annotated[str, typer.Argument(help="As `holdfast replica list` names it.")],
    peer: Annotated[str, typer.Option(help="Host that the VM failed over to; it sends it from now on.")],
    yes: Annotated[bool, typer.Option("--yes", help="Also where its source is connected.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Let another host send a replica that this one holds; points stay, and only what differs is sent."""
    from urllib.parse import quote

    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    with connect() as client:
        path = f"/v1/replica/held/{quote(name, safe='')}/sender"
        found = client.wire("POST", path, {"peer": peer, "replace": yes})
    if format_ is Format.JSON:
        print_json(found)
    else:
        say(f"{peer!r} may send replica {found['name']!r}: enable the VM's replication to this host there")
