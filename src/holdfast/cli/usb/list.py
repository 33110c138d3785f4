"""`holdfast usb list`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast usb list web"


def command(name: VmArgument, format_: FormatOption = Format.TABLE) -> None:
    """List the host's USB devices in a VM: in the machine that runs, and after the next start."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.device import WORDS

    with connect() as client:
        items = client.wire("GET", vm_path(name, "usb"))
    show_list(items, ("id", "device", "plugged", "after_next_start"), format_, WORDS)
