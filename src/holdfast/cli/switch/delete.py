"""`holdfast switch delete`."""

from holdfast.cli.names import SwitchArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast switch delete lan"


def command(name: SwitchArgument, format_: FormatOption = Format.TABLE) -> None:
    """Delete a switch that nothing is plugged into."""
    from urllib.parse import quote

    from holdfast.cli.output import say_deleted
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/switches/{quote(name, safe='')}")
    say_deleted("switch", name, format_)
