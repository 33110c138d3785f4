"""`holdfast certs show`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast certs show web"


def command(name: VmArgument, format_: FormatOption = Format.TABLE) -> None:
    """Show the keys of a VM, what it starts, and who signed that."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.certificates import certificates_sheet

    with connect() as client:
        show(client.wire("GET", vm_path(name, "certs")), format_, certificates_sheet)
