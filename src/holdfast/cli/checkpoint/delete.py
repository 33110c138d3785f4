"""`holdfast checkpoint delete`."""

from typing import Annotated

import typer

from holdfast.cli.checkpoint_paths import CheckpointArgument, VmOption
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast checkpoint delete web before-upgrade --subtree"


def command(
    vm: VmOption,
    name: CheckpointArgument,
    subtree: Annotated[bool, typer.Option("--subtree", help="All that came from it, too.")] = False,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Delete a checkpoint and give its room back; the VM may run. What it is now stays as it is."""
    from holdfast.cli.checkpoint_paths import checkpoint_path
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    with connect() as client:
        wire = client.wire("DELETE", checkpoint_path(vm, name), query={"subtree": subtree})
        finish(client, wire, format_, no_wait)
