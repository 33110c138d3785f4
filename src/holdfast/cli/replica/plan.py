"""`holdfast replica plan`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica plan web --rpo 5s --since 24h"


def command(
    vm: Annotated[str | None, typer.Argument(help="One VM; none: all, and what they need together.")] = None,
    rpo: Annotated[str | None, typer.Option(help="Which bandwidth holds it? None: the VM's target.")] = None,
    bandwidth: Annotated[
        str | None, typer.Option(help="Which RPO would a link like that give? Such as 100Mbit/s.")
    ] = None,
    since: Annotated[str, typer.Option(help="Reckon with what was measured so far back, 1m to 90d.")] = "24h",
    format_: FormatOption = Format.TABLE,
) -> None:
    """Plan a link: the bandwidth that an RPO needs, and the RPO that a bandwidth gives, as measured."""
    from holdfast.cli.output import print_json, table
    from holdfast.cli.replica.durations import seconds
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.replica import PLAN_COLUMNS, plan_row

    query = {
        "vm": vm,
        "rpo_seconds": None if rpo is None else seconds(rpo),
        "bandwidth": bandwidth,
        "since": round(seconds(since)),
    }
    with connect() as client:
        asked = {key: value for key, value in query.items() if value is not None}
        found = client.wire("GET", "/v1/replica/plan", query=asked)
    if format_ is Format.JSON:
        print_json(found)
    else:
        table(PLAN_COLUMNS, [plan_row(each) for each in found])
