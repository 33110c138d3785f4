"""`holdfast pool show`."""

from holdfast.cli.names import PoolArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast pool show fast"


def command(name: PoolArgument, format_: FormatOption = Format.TABLE) -> None:
    """Show a pool, asked anew: its room, its health, the disks in it."""
    from urllib.parse import quote

    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.pool import pool_sheet

    with connect() as client:
        show(client.wire("GET", f"/v1/pools/{quote(name, safe='')}"), format_, pool_sheet)
