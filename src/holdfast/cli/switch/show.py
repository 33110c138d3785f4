"""`holdfast switch show`."""

from holdfast.cli.names import SwitchArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast switch show lan"


def command(name: SwitchArgument, format_: FormatOption = Format.TABLE) -> None:
    """Show a switch."""
    from urllib.parse import quote

    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.switch import switch_sheet

    with connect() as client:
        show(client.wire("GET", f"/v1/switches/{quote(name, safe='')}"), format_, switch_sheet)
