"""`holdfast pool create`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast pool create fast --kind directory --path /srv/fast"


def command(
    name: Annotated[str, typer.Argument(help="A name for the pool.")],
    path: Annotated[str, typer.Option(help="Directory of this host; empty, and the daemon's alone.")],
    kind: Annotated[str, typer.Option(help="directory.")] = "directory",
    disk_format: Annotated[str, typer.Option(help="qcow2 or raw: of new disks that stand alone.")] = "qcow2",
    format_: FormatOption = Format.TABLE,
) -> None:
    """Make a pool."""
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.pool import pool_sheet

    body = {"name": name, "spec": {"kind": kind, "path": path, "format": disk_format}}
    with connect() as client:
        show(client.wire("POST", "/v1/pools", body), format_, pool_sheet)
