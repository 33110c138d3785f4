"""`holdfast nic list`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast nic list web"


def command(name: VmArgument, format_: FormatOption = Format.TABLE) -> None:
    """List a VM's network cards: those of the machine that runs, and those of the next start."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.device import WORDS

    with connect() as client:
        items = client.wire("GET", vm_path(name, "nics"))
    columns = ("id", "switch", "vlan", "mac", "plugged", "guest_sees", "after_next_start")
    show_list(items, columns, format_, WORDS)
