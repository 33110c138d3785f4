"""`holdfast checkpoint rename`."""

from typing import Annotated

import typer

from holdfast.cli.checkpoint_paths import CheckpointArgument, VmOption
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast checkpoint rename web '2026-03-01 14-05-09' before-upgrade"


def command(
    vm: VmOption,
    name: CheckpointArgument,
    new_name: Annotated[str | None, typer.Argument(help="The new name; none: it stays.")] = None,
    notes: Annotated[str | None, typer.Option(help="New text to go with it.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Give a checkpoint another name or other notes."""
    from holdfast.cli.checkpoint_paths import checkpoint_path
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.checkpoint import checkpoint_sheet

    with connect() as client:
        body = {"name": new_name, "notes": notes}
        show(client.wire("PATCH", checkpoint_path(vm, name), body), format_, checkpoint_sheet)
