"""`holdfast vm delete`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast vm delete web --force"


def command(
    name: VmArgument,
    force: Annotated[bool, typer.Option("--force", help="Kill it first where it runs.")] = False,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Delete a VM with its disks and firmware state."""
    from holdfast.api.client import vm_path
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    with connect() as client:
        wire = client.wire("DELETE", vm_path(name), query={"force": force})
        finish(client, wire, format_, no_wait)
