"""`holdfast usb remove`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast usb remove web usb0"


def command(
    name: VmArgument,
    device: Annotated[str, typer.Argument(metavar="ID", help="Its id, such as usb0.")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Take a USB device away from a VM, at once where it runs, as if it were pulled."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.device import usb_path, usb_sheet

    with connect() as client:
        show(client.wire("DELETE", vm_path(name, usb_path(device))), format_, usb_sheet)
