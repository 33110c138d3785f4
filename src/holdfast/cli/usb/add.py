"""`holdfast usb add`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast usb add web 046d:c31c"


def command(
    name: VmArgument,
    device: Annotated[
        str,
        typer.Argument(metavar="DEVICE", help="VENDOR:PRODUCT, such as 046d:c31c, or BUS.PORT, such as 1.2."),
    ],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Give a VM a USB device of the host, at once where it runs.

    While it has one, the VM cannot be saved with its memory.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.device import usb_sheet

    with connect() as client:
        show(client.wire("POST", vm_path(name, "usb"), {"device": device}), format_, usb_sheet)
