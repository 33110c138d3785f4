"""`holdfast pool refresh`."""

from holdfast.cli.names import PoolArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast pool refresh fast"


def command(name: PoolArgument, format_: FormatOption = Format.TABLE) -> None:
    """Connect a pool anew where its storage was away, and show it."""
    from urllib.parse import quote

    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.pool import pool_sheet

    with connect() as client:
        show(client.wire("POST", f"/v1/pools/{quote(name, safe='')}/refresh"), format_, pool_sheet)
