"""`holdfast certs plan`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.names import VmsArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast certs plan --all --dbx DBXUpdate.bin"


def command(
    vms: VmsArgument = None,
    all_: Annotated[bool, typer.Option("--all", help="Every VM of this host.")] = False,
    dbx: Annotated[Path | None, typer.Option(help="Also revoke what this list names.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Say what an update would do, and change nothing."""
    import sys

    from holdfast.cli.output import print_json
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.certificates import plan_sheet
    from holdfast.cli.uploading import base64_of

    body = {"vms": vms or [], "all": all_, "dbx": base64_of(dbx) if dbx else None}
    with connect() as client:
        items = client.wire("POST", "/v1/certs/plan", body)["items"]
    if format_ is Format.JSON:
        print_json(items)
    else:
        sys.stdout.write("\n".join(plan_sheet(each) for each in items))
