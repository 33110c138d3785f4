"""`holdfast checkpoint create`."""

from typing import Annotated

import typer

from holdfast.cli.checkpoint_paths import VmOption
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait
from holdfast.spec.checkpoint import CheckpointWish

EXAMPLE = "holdfast checkpoint create web --name before-upgrade --type production"


def command(
    vm: VmOption,
    name: Annotated[str | None, typer.Option(help="Its name; the time where none is given.")] = None,
    type_: Annotated[
        CheckpointWish,
        typer.Option(
            "--type",
            help="standard: with memory. production: without, the guest's file systems at rest; standard"
            " where its agent does not do that. production-only: or none at all.",
        ),
    ] = CheckpointWish.STANDARD,
    notes: Annotated[str, typer.Option(help="Text to go with it.")] = "",
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Keep what a VM is now, to return to it later; the VM runs on meanwhile."""
    from holdfast.cli.checkpoint_paths import checkpoint_path
    from holdfast.cli.output import say
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    with connect() as client:
        body = {"name": name, "type": type_, "notes": notes}
        done = finish(client, client.wire("POST", checkpoint_path(vm), body), format_, no_wait)
    made = done["result"]
    if made and format_ is Format.TABLE:
        stall = made["stall_seconds"]
        still = "" if stall is None else f"; the guest stood still for {stall * 1000:.0f} ms"
        say(f"{made['checkpoint']}: {made['type']}{still}")
