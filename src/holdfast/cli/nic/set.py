"""`holdfast nic set`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument, complete_switch
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.vm.set import NothingToChange

EXAMPLE = "holdfast nic set web nic0 --switch lan"


def command(
    name: VmArgument,
    nic: Annotated[str, typer.Argument(metavar="NIC", help="Its id, such as nic0.")],
    switch: Annotated[
        str | None,
        typer.Option(help="Its switch; '' for the user-mode network.", autocompletion=complete_switch),
    ] = None,
    vlan: Annotated[int | None, typer.Option(help="VLAN of its port; 0 for none.")] = None,
    mac: Annotated[str | None, typer.Option(help="Its MAC address, from the next start on.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Move a network card to another switch or VLAN, at once where the VM runs."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.device import nic_path, nic_sheet

    if (switch, vlan, mac) == (None,) * 3:
        raise NothingToChange("no setting was named", cure="See `holdfast nic set --help`.")
    body = {"switch": switch, "vlan": vlan, "mac": mac}
    with connect() as client:
        show(client.wire("PATCH", vm_path(name, nic_path(nic)), body), format_, nic_sheet)
