"""`holdfast replica history`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica history web --since 12h"


def command(
    vm: Annotated[str, typer.Argument(help="The VM.")],
    since: Annotated[str, typer.Option(help="How far back: 1m to 90d; by minutes up to a day.")] = "12h",
    reset: Annotated[bool, typer.Option("--reset", help="Forget it, and measure anew from now on.")] = False,
    to: Annotated[str | None, typer.Option(help="Of several peers the one that is meant.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Show what happened to a VM's replica over time: cycles, sizes, latency, failures, RPO."""
    import shutil
    import sys
    from urllib.parse import quote

    from holdfast.cli.output import print_json, say
    from holdfast.cli.replica.durations import seconds
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.replica import history_text

    path = f"/v1/vms/{quote(vm, safe='')}/replica/history"
    with connect() as client:
        if reset:
            client.wire("DELETE", path, query={"peer": to})
        else:
            found = client.wire("GET", path, query={"since": round(seconds(since)), "peer": to})
    if reset and format_ is Format.JSON:
        print_json({"reset": vm})
    elif reset:
        say(f"the history of VM {vm!r} begins anew")
    elif format_ is Format.JSON:
        print_json(found)
    else:
        blocks = (sys.stdout.encoding or "").lower().startswith("utf")
        sys.stdout.write(history_text(found, shutil.get_terminal_size().columns, blocks=blocks))
