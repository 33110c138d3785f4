"""`holdfast switch create`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast switch create lan --type internal --subnet 10.20.0.0/24"


def command(
    name: Annotated[str, typer.Argument(help="A name for the switch.")],
    type: Annotated[str, typer.Option(help="private, internal, external or user.")],
    subnet: Annotated[str | None, typer.Option(help="IPv4 network of an internal switch.")] = None,
    interface: Annotated[str | None, typer.Option(help="Physical interface of an external switch.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Make a switch."""
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.switch import switch_sheet

    body = {"name": name, "type": type, "subnet": subnet, "interface": interface}
    with connect() as client:
        show(client.wire("POST", "/v1/switches", body), format_, switch_sheet)
