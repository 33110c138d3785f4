"""`holdfast disk list`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast disk list web"


def command(name: VmArgument, format_: FormatOption = Format.TABLE) -> None:
    """The disks of a VM: those that it has now, and those of its next start."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.disk import COLUMNS, WORDS

    with connect() as client:
        show_list(client.wire("GET", vm_path(name, "disks")), COLUMNS, format_, WORDS)
