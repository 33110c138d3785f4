"""`holdfast replica enable`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica enable web --to south --rpo 1s --limit 200Mbit/s"


def command(
    vm: Annotated[str, typer.Argument(help="The VM.")],
    to: Annotated[str, typer.Option(help="The peer that is to hold it.")],
    rpo: Annotated[str, typer.Option(help="How old the newest point may be: 1s to 24h.")] = "1s",
    points: Annotated[
        str, typer.Option(help="Which points are kept, from the youngest to the oldest.")
    ] = "all:10m,1m:1h,1h:1d,1d:30d",
    priority: Annotated[str, typer.Option(help="high, normal or low.")] = "normal",
    limit: Annotated[
        str, typer.Option(help="What may be sent, also by time: 1Gbit/s,mon-fri 08:00-18:00=50Mbit/s")
    ] = "none",
    exclude: Annotated[list[str] | None, typer.Option(help="A disk that is not sent; may repeat.")] = None,
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
    schedule: Annotated[
        str,
        typer.Option(help="When it is sent: always, or 22:00-06:00,sat 00:00-24:00"),
    ] = "always",
    initial: Annotated[str, typer.Option(help="When the initial copy begins: now, or 'at 22:00'.")] = "now",
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
