"""`holdfast vm show`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast vm show web --format json"


def command(name: VmArgument, format_: FormatOption = Format.TABLE) -> None:
    """Show everything about a VM."""
    from holdfast.api.client import vm_path
    from holdfast.cli.session import connect
    from holdfast.cli.vm_output import show_vm

    with connect() as client:
        show_vm(client, client.wire("GET", vm_path(name)), format_)
