"""`holdfast pool delete`."""

from holdfast.cli.names import PoolArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast pool delete fast"


def command(name: PoolArgument, format_: FormatOption = Format.TABLE) -> None:
    """Forget a pool that no disk lies in; its directory stays."""
    from urllib.parse import quote

    from holdfast.cli.output import say_deleted
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/pools/{quote(name, safe='')}")
    say_deleted("pool", name, format_)
