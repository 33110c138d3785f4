"""`holdfast checkpoint list`."""

from holdfast.cli.checkpoint_paths import VmOption
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast checkpoint list web"


def command(vm: VmOption, format_: FormatOption = Format.TABLE) -> None:
    """List the checkpoints of a VM as a tree; `*` marks the one that it came from."""
    from holdfast.cli.checkpoint_paths import checkpoint_path
    from holdfast.cli.output import print_json, table
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.checkpoint import tree_rows

    with connect() as client:
        items = client.wire("GET", checkpoint_path(vm))
    if format_ is Format.JSON:
        print_json(items)
        return
    table(("name", "type", "created", "size", "notes"), tree_rows(items))
