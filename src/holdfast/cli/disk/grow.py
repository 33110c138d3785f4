"""`holdfast disk grow`."""

from typing import Annotated

import typer

from holdfast.cli.names import DiskArgument, VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast disk grow web disk1 --size 20GiB"


def command(
    name: VmArgument,
    disk: DiskArgument,
    size: Annotated[str, typer.Option(help="What it has afterwards, for example 20GiB.")],
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Give a disk more space, at once where the VM runs. Disks never shrink."""
    from holdfast.api.client import vm_path
    from holdfast.cli.disk_done import finish_disk
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.disk import disk_path

    with connect() as client:
        wire = client.wire("POST", vm_path(name, disk_path(disk, "grow")), {"size": size})
        finish_disk(client, wire, format_, no_wait)
