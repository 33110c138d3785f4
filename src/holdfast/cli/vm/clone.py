"""`holdfast vm clone`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast vm clone web web-2"


def command(
    name: VmArgument,
    new_name: Annotated[str, typer.Argument(help="Name of the copy.")],
    full_copy: Annotated[bool, typer.Option("--full-copy", help="Copy the disks whole.")] = False,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Copy a VM, its disks and its firmware state."""
    from holdfast.api.client import vm_path
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    body = {"name": new_name, "full_copy": full_copy}
    with connect() as client:
        finish(client, client.wire("POST", vm_path(name, "clone"), body), format_, no_wait)
