"""`holdfast checkpoint apply`."""

from typing import Annotated

import typer

from holdfast.cli.checkpoint_paths import CheckpointArgument, VmOption
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast checkpoint apply web before-upgrade --checkpoint-first"


def command(
    vm: VmOption,
    name: CheckpointArgument,
    checkpoint_first: Annotated[
        bool | None,
        typer.Option(
            "--checkpoint-first/--no-checkpoint-first",
            help="Keep what is now as a checkpoint. Asked for on a terminal; elsewhere no.",
        ),
    ] = None,
    start: Annotated[
        bool | None,
        typer.Option("--start/--no-start", help="Whether it runs afterwards. By default, where it runs now."),
    ] = None,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Return to a checkpoint: what the VM is now is given up, unless it is kept as one first.

    A VM that runs is ended at once. Its TPM is turned back too, with its counters and its lockout.
    """
    import sys

    from holdfast.cli.checkpoint_paths import checkpoint_path
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    with connect() as client:
        client.wire("GET", checkpoint_path(vm, name))
        if checkpoint_first is None and sys.stdin.isatty():
            question = f"What {vm} is now will be lost. Make a checkpoint of it first?"
            checkpoint_first = typer.confirm(question, default=True, err=True)
        body = {"checkpoint_first": bool(checkpoint_first), "start": start}
        wire = client.wire("POST", checkpoint_path(vm, name, "apply"), body)
        finish(client, wire, format_, no_wait)
