"""`holdfast nic add`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument, complete_switch
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast nic add web --switch lan --vlan 20"


def command(
    name: VmArgument,
    switch: Annotated[
        str | None,
        typer.Option(help="Its switch; without it the user-mode network.", autocompletion=complete_switch),
    ] = None,
    vlan: Annotated[int | None, typer.Option(help="IEEE 802.1Q VLAN of its port, 1 to 4094.")] = None,
    mac: Annotated[str | None, typer.Option(help="Its MAC address; without it a free one.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Give a VM one more network card, at once where it runs."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.device import nic_sheet

    body = {"switch": switch, "vlan": vlan, "mac": mac}
    with connect() as client:
        show(client.wire("POST", vm_path(name, "nics"), body), format_, nic_sheet)
