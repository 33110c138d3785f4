"""`holdfast replica failover`."""

from typing import Annotated, Any

import typer

from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast replica failover web --planned"


def command(
    name: Annotated[
        str,
        typer.Argument(help="A replica of this host; with --planned a VM of it that is replicated."),
    ],
    planned: Annotated[
        bool, typer.Option("--planned", help="Hand a VM of this host over to its receiver; nothing is lost.")
    ] = False,
    to: Annotated[str | None, typer.Option(help="With --planned: the peer, where there are several.")] = None,
    timeout: Annotated[
        float, typer.Option(help="With --planned: seconds that the guest has to shut down.")
    ] = 90.0,
    point: Annotated[
        str | None, typer.Option(help="Number of a point, or a time: the newest point that is not younger.")
    ] = None,
    commit: Annotated[
        bool, typer.Option("--commit", help="Final at once: other points are dropped.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Take back one that is not committed: its VM is deleted.")
    ] = False,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Run a replicated VM on the other host.

    On the host that holds the replica, when the source is lost: another point may be chosen until
    `holdfast replica commit`. On the source, with --planned: the guest is stopped, all of it is sent, it is
    started over there, and replicated back.
    """
    from urllib.parse import quote

    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    if planned and (point or commit or cancel):
        raise typer.BadParameter("--planned takes the VM as it is: no --point, --commit or --cancel")
    if cancel and (point or commit):
        raise typer.BadParameter("--cancel takes no --point and no --commit")
    quoted = quote(name, safe="")
    with connect() as client:
        if planned:
            asked: dict[str, Any] = {"timeout_seconds": timeout, "peer": to}
            begun = client.wire("POST", f"/v1/vms/{quoted}/replica/failover", asked)
        elif cancel:
            begun = client.wire("DELETE", f"/v1/replica/held/{quoted}/failover")
        else:
            asked = {**_point(point), "commit": commit}
            begun = client.wire("POST", f"/v1/replica/held/{quoted}/failover", asked)
        finish(client, begun, format_, no_wait)


def _point(text: str | None) -> dict[str, Any]:
    from datetime import datetime

    if text is None:
        return {}
    if text.isdecimal():
        return {"point": int(text)}
    try:
        return {"time": datetime.fromisoformat(text).astimezone().isoformat()}
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number of a point and no time") from None
