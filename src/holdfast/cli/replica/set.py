"""`holdfast replica set`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica set web --limit 50Mbit/s --rpo 15m"


def command(
    vm: Annotated[str, typer.Argument(help="The VM.")],
    to: Annotated[str | None, typer.Option(help="Of several peers the one that is meant.")] = None,
    rpo: Annotated[str | None, typer.Option(help="How old the newest point may be: 1s to 24h.")] = None,
    points: Annotated[str | None, typer.Option(help="Which points are kept.")] = None,
    priority: Annotated[str | None, typer.Option(help="high, normal or low; at once.")] = None,
    limit: Annotated[str | None, typer.Option(help="What may be sent, also by time; at once.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A disk that is not sent; may repeat; 'none': all are.")
    ] = None,
    map_switch: Annotated[
        list[str] | None, typer.Option(help="What a switch is called over there: LAN=LAN2; may repeat.")
    ] = None,
    failover_address: Annotated[
        list[str] | None, typer.Option(help="What a NIC has over there; may repeat.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="When it is sent: always, or 22:00-06:00.")] = None,
    initial: Annotated[str | None, typer.Option(help="now: an initial copy that waits begins.")] = None,
    app_consistent: Annotated[
        str | None, typer.Option(help="How often the guest's agent prepares a point: every=1h, or none.")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Change how a VM is replicated, while it goes on. What is not said stays as it is."""
    from urllib.parse import quote

    from holdfast.cli.output import print_json, say
    from holdfast.cli.replica.durations import every, seconds
    from holdfast.cli.replica.failover_words import failover
    from holdfast.cli.session import connect

    asked = {
        "rpo_seconds": None if rpo is None else seconds(rpo),
        "points": points,
        "priority": priority,
        "limit": limit,
        "exclude": [each for each in exclude if each != "none"] if exclude else None,
        "failover": failover(map_switch, failover_address) if map_switch or failover_address else None,
        "schedule": schedule,
        "initial": initial,
        "consistent_seconds": None if app_consistent is None else every(app_consistent),
    }
    changed = {key: value for key, value in asked.items() if value is not None}
    if not changed:
        raise typer.BadParameter("say what is to be different, such as --limit 50Mbit/s")
    with connect() as client:
        made = client.wire("PATCH", f"/v1/vms/{quote(vm, safe='')}/replica", changed, {"peer": to})
    if format_ is Format.JSON:
        print_json(made)
    else:
        say(f"how VM {made['vm']!r} is replicated to {made['peer']!r} was changed")
