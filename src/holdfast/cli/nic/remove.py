"""`holdfast nic remove`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast nic remove web nic1"


def command(
    name: VmArgument,
    nic: Annotated[str, typer.Argument(metavar="NIC", help="Its id, such as nic1.")],
    force: Annotated[
        bool, typer.Option("--force", help="Cut it off at once where the guest does not let go of it.")
    ] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Take a network card away from a VM, at once where it runs.

    The guest has to let go of it. One that does not is told of (exit code and id); the card is then
    gone at the next start. With --force the host's side is freed at once, and the guest keeps a card
    without a network until it restarts.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.device import nic_path, nic_sheet

    with connect() as client:
        query = {"force": force}
        show(client.wire("DELETE", vm_path(name, nic_path(nic)), query=query), format_, nic_sheet)
