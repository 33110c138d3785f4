"""`holdfast disk remove`."""

from typing import Annotated

import typer

from holdfast.cli.names import DiskArgument, VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast disk remove web disk1"


def command(
    name: VmArgument,
    disk: DiskArgument,
    keep: Annotated[bool, typer.Option("--keep", help="Set its volumes aside instead of deleting.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also where the guest does not let go of it; of a VM that is off, the first disk."
        ),
    ] = False,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Take a disk away from a VM, at once where it runs, and delete what is on it.

    The guest of a VM that runs has to let go of it. Where it does not, the disk stays, which is told
    (exit code and id), and can be tried again. With --force it then goes when the guest lets go of it
    at last, or when the VM stops.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.disk_done import finish_disk
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.disk import disk_path

    with connect() as client:
        wire = client.wire("DELETE", vm_path(name, disk_path(disk)), query={"keep": keep, "force": force})
        finish_disk(client, wire, format_, no_wait)
