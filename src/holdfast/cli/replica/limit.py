"""`holdfast replica limit`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica limit --peer south 1Gbit/s,mon-fri 08:00-18:00=100Mbit/s"


def command(
    rate: Annotated[
        str | None, typer.Argument(help="Bits or bytes a second, also by time, or none. Left out: show.")
    ] = None,
    host: Annotated[bool, typer.Option("--host", help="Of all that this host sends.")] = False,
    peer: Annotated[str | None, typer.Option(help="Of all that is sent to this peer.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Limit what replicas send: of this host, or to a peer. A VM's own limit is among its settings.

    It holds at once, also for what is under way.
    """
    from urllib.parse import quote

    from holdfast.cli.output import print_json, table
    from holdfast.cli.session import connect

    if (rate is None and (host or peer)) or (rate is not None and host == (peer is not None)):
        raise typer.BadParameter("name one of --host and --peer, and the rate", param_hint="RATE")
    path = "/v1/replica/limits"
    with connect() as client:
        if rate is None:
            found = client.wire("GET", path)
        elif host:
            found = client.wire("PUT", f"{path}/host", {"limit": rate})
        else:
            found = client.wire("PUT", f"{path}/peers/{quote(peer or '', safe='')}", {"limit": rate})
    if format_ is Format.JSON:
        print_json(found)
        return
    table(("of", "limit"), [("host", found["host"]), *(found["peers"].items())])
