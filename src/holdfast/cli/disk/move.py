"""`holdfast disk move`, which is `holdfast vm move-disk` as well."""

from typing import Annotated

import typer

from holdfast.cli.names import DiskArgument, VmArgument, complete_pool
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait
from holdfast.spec.errors import InvalidInput


class OneDestination(InvalidInput):
    id = "one-destination"


EXAMPLE = "holdfast disk move web disk1 --to fast"


def command(
    name: VmArgument,
    disk: DiskArgument,
    to: Annotated[
        str | None,
        typer.Option(help="The pool; `local` is the VM's own folder.", autocompletion=complete_pool),
    ] = None,
    bus: Annotated[
        str | None, typer.Option(help="What the guest sees it on from the next start on: virtio, scsi, nvme.")
    ] = None,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Move a disk to another pool, also while the VM runs; or to another bus, at the next start."""
    from holdfast.api.client import vm_path
    from holdfast.cli.disk_done import finish_disk
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.disk import disk_path, disk_sheet

    if (to is None) == (bus is None):
        raise OneDestination("a disk is moved to a pool or to a bus", cure="Give one of --to and --bus.")
    with connect() as client:
        if bus is not None:
            show(client.wire("PUT", vm_path(name, disk_path(disk, "bus")), {"bus": bus}), format_, disk_sheet)
            return
        wire = client.wire("POST", vm_path(name, disk_path(disk, "move")), {"to": to})
        finish_disk(client, wire, format_, no_wait)
