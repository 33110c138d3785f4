"""`holdfast replica extend`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption
from holdfast.cli.replica.sending_options import (
    POINTS,
    ExcludeOption,
    InitialOption,
    LimitOption,
    PriorityOption,
    ScheduleOption,
)

EXAMPLE = "holdfast replica extend web --to west --rpo 1m --limit 50Mbit/s"


def command(
    name: Annotated[str, typer.Argument(help="A replica that this host holds; see `replica list`.")],
    to: Annotated[str, typer.Option(help="The peer that it is sent on to.")],
    rpo: Annotated[
        str, typer.Option(help="How old the newest point may be there, counted on the VM's own host.")
    ] = "15s",
    points: Annotated[
        str, typer.Option(help="Which points are kept there, from the youngest to the oldest.")
    ] = POINTS,
    priority: PriorityOption = "normal",
    limit: LimitOption = "none",
    exclude: ExcludeOption = None,
    map_switch: Annotated[
        list[str] | None,
        typer.Option(help="What a switch of the VM's own host is called there: LAN=LAN2; may repeat."),
    ] = None,
    failover_address: Annotated[
        list[str] | None, typer.Option(help="What a NIC has over there, as `enable` has it; may repeat.")
    ] = None,
    schedule: ScheduleOption = "always",
    initial: InitialOption = "now",
    format_: FormatOption = Format.TABLE,
) -> None:
    """Send a replica that this host holds on to a further host, from now on: a chain."""
    from urllib.parse import quote

    from holdfast.cli.output import print_json, say
    from holdfast.cli.replica.durations import seconds
    from holdfast.cli.replica.failover_words import failover
    from holdfast.cli.session import connect

    asked = {
        "peer": to,
        "rpo_seconds": seconds(rpo),
        "points": points,
        "priority": priority,
        "limit": limit,
        "exclude": exclude or [],
        "schedule": schedule,
        "initial": initial,
        "failover": failover(map_switch, failover_address),
    }
    with connect() as client:
        made = client.wire("POST", f"/v1/replica/held/{quote(name, safe='')}/extension", asked)
    if format_ is Format.JSON:
        print_json(made)
    else:
        say(f"replica {made['vm']!r} is sent on to {made['peer']!r}; see `holdfast replica status`")
