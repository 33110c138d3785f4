"""`holdfast certs update`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.names import VmsArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast certs update web db"


def command(
    vms: VmsArgument = None,
    all_: Annotated[bool, typer.Option("--all", help="Every VM of this host.")] = False,
    dbx: Annotated[Path | None, typer.Option(help="Also revoke what this list names.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where the VM would not boot then.")] = False,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Add the certificates of 2023: now to VMs that are off, to others at their next start."""
    from holdfast.cli.output import say
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.certificates import outcomes
    from holdfast.cli.uploading import base64_of
    from holdfast.cli.waiting import finish

    body = {"vms": vms or [], "all": all_, "dbx": base64_of(dbx) if dbx else None, "force": force}
    with connect() as client:
        done = finish(client, client.wire("POST", "/v1/certs/update", body), format_, no_wait)
    for line in outcomes(done):
        say(line)
