"""`holdfast disk show`."""

from holdfast.cli.names import DiskArgument, VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast disk show web disk1"


def command(name: VmArgument, disk: DiskArgument, format_: FormatOption = Format.TABLE) -> None:
    """One disk: where it is, what it may do, and what the next start changes."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.disk import disk_path, disk_sheet

    with connect() as client:
        show(client.wire("GET", vm_path(name, disk_path(disk))), format_, disk_sheet)
