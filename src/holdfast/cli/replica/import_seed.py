"""`holdfast replica import-seed`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast replica import-seed /media/disk/web"


def command(
    folder: Annotated[
        Path | None, typer.Argument(help="What `replica export-seed` wrote, on the daemon's host.")
    ] = None,
    from_vm: Annotated[
        str | None, typer.Option(help="In its place: a VM of this host, off, such as one from a backup.")
    ] = None,
    peer: Annotated[str | None, typer.Option(help="With --from-vm: the source of the replica.")] = None,
    vm: Annotated[str | None, typer.Option(help="With --from-vm: id of the VM over there.")] = None,
    name: Annotated[str | None, typer.Option(help="With --from-vm: its name over there.")] = None,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Begin a replica with disks that are here already: only what differs is sent then."""
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    if (folder is None) is (from_vm is None):
        raise typer.BadParameter("name the folder of a seed, or a VM with --from-vm")
    if from_vm is not None and (peer is None or vm is None):
        raise typer.BadParameter("--from-vm needs --peer and --vm")
    with connect() as client:
        if folder is not None:
            begun = client.wire("POST", "/v1/replica/seeds", {"folder": str(folder.absolute())})
        else:
            asked = {"from_vm": from_vm, "peer": peer, "vm": vm, "name": name}
            begun = client.wire("POST", "/v1/replica/seeds/from-vm", asked)
        finish(client, begun, format_, no_wait)
