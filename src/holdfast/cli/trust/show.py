"""`holdfast trust show`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust show web"


def command(name: VmArgument, format_: FormatOption = Format.TABLE) -> None:
    """Show what a VM booted with, who signed it, and the last verdict on it."""
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.trust import trust_sheet
    from holdfast.cli.trust_paths import trust_path

    with connect() as client:
        show(client.wire("GET", trust_path(name)), format_, trust_sheet)
