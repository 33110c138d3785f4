"""`holdfast replica enable`."""

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

EXAMPLE = "holdfast replica enable web --to south --rpo 1s --limit 200Mbit/s"


def command(
    vm: Annotated[str, typer.Argument(help="The VM.")],
    to: Annotated[str, typer.Option(help="The peer that is to hold it.")],
    rpo: Annotated[str, typer.Option(help="How old the newest point may be: 1s to 24h.")] = "1s",
    points: Annotated[
        str, typer.Option(help="Which points are kept, from the youngest to the oldest.")
    ] = POINTS,
    priority: PriorityOption = "normal",
    limit: LimitOption = "none",
    exclude: ExcludeOption = None,
    map_switch: Annotated[
        list[str] | None, typer.Option(help="What a switch is called over there: LAN=LAN2; may repeat.")
    ] = None,
    failover_address: Annotated[
        list[str] | None,
        typer.Option(
            help="What a NIC has over there, IPv4 and IPv6: "
            "nic0=192.0.2.10/24,gateway=192.0.2.1,dns=192.0.2.53; may repeat."
        ),
    ] = None,
    schedule: ScheduleOption = "always",
    initial: InitialOption = "now",
    app_consistent: Annotated[
        str, typer.Option(help="How often the guest's agent prepares a point: every=1h, or none.")
    ] = "none",
    format_: FormatOption = Format.TABLE,
) -> None:
    """Replicate a VM to another host, from now on."""
    from urllib.parse import quote

    from holdfast.cli.output import print_json, say
    from holdfast.cli.replica.durations import every, seconds
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
        "consistent_seconds": every(app_consistent),
        "failover": failover(map_switch, failover_address),
    }
    with connect() as client:
        made = client.wire("POST", f"/v1/vms/{quote(vm, safe='')}/replica", asked)
    if format_ is Format.JSON:
        print_json(made)
    else:
        say(f"VM {made['vm']!r} is replicated to {made['peer']!r}; see `holdfast replica status`")
