"""`holdfast checkpoint show`."""

from holdfast.cli.checkpoint_paths import CheckpointArgument, VmOption
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast checkpoint show web before-upgrade"


def command(vm: VmOption, name: CheckpointArgument, format_: FormatOption = Format.TABLE) -> None:
    """Show one checkpoint."""
    from holdfast.cli.checkpoint_paths import checkpoint_path
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.checkpoint import checkpoint_sheet

    with connect() as client:
        show(client.wire("GET", checkpoint_path(vm, name)), format_, checkpoint_sheet)
