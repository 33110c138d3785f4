"""`holdfast replica status`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica status web --format json"
_COLUMNS = (
    *("vm", "peer", "state", "health", "rpo_seconds", "rpo_p50_seconds", "rpo_p99_seconds"),
    *("lag_bytes", "full_copies", "points"),
)


def command(
    vm: Annotated[str | None, typer.Argument(help="One VM; none: all that are replicated.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Show how current the replicas of this host's VMs are, and what is not as it should be."""
    from holdfast.cli.output import print_json, say, show_list
    from holdfast.cli.session import connect

    with connect() as client:
        found = client.wire("GET", "/v1/replica/status", query={"vm": vm})
    if format_ is Format.JSON:
        print_json(found)
        return
    show_list(found, _COLUMNS, format_)
    for each in found:
        for finding in each["findings"]:
            say(f"{each['vm']}: {finding}")
