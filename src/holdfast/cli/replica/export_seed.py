"""`holdfast replica export-seed`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast replica export-seed web --peer south --to /media/disk/web"


def command(
    name: VmArgument,
    peer: Annotated[str, typer.Option(help="The receiver that it is for; nobody else can read it.")],
    to: Annotated[Path, typer.Option(help="An empty or new folder of the daemon's host.")],
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Write a VM's disks onto a medium, so that its initial copy need not cross the link."""
    from holdfast.api.client import vm_path
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    asked = {"peer": peer, "folder": str(to.absolute())}
    with connect() as client:
        finish(client, client.wire("POST", vm_path(name, "replica/seed"), asked), format_, no_wait)
