"""`holdfast trust secret list`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust secret list web"


def command(name: VmArgument, format_: FormatOption = Format.TABLE) -> None:
    """List the secrets that are kept for a VM, never what they hold."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import moment, size
    from holdfast.cli.trust_paths import trust_path

    with connect() as client:
        items = client.wire("GET", trust_path(name, "secrets"))
    show_list(items, ("name", "size", "stored"), format_, {"size": size, "stored": moment})
