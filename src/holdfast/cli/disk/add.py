"""`holdfast disk add`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument, complete_image, complete_pool
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast disk add web --size 10GiB"


def command(
    name: VmArgument,
    size: Annotated[str | None, typer.Option(help="For example 10GiB; without it the image's own.")] = None,
    image: Annotated[
        str | None, typer.Option(help="An image to start from.", autocompletion=complete_image)
    ] = None,
    full_copy: Annotated[
        bool, typer.Option("--full-copy", help="Copy the image whole instead of a thin overlay.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="A block device of the host that carries the disk directly.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(help="Pool of its volume; none: the VM's own folder.", autocompletion=complete_pool),
    ] = None,
    bus: Annotated[str, typer.Option(help="virtio, scsi or nvme.")] = "virtio",
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Give a VM one more disk, at once where it runs."""
    from holdfast.api.client import vm_path
    from holdfast.cli.disk_done import finish_disk
    from holdfast.cli.session import connect

    body = {"size": size, "image": image, "full_copy": full_copy, "device": device}
    body |= {"pool": pool, "bus": bus}
    with connect() as client:
        finish_disk(client, client.wire("POST", vm_path(name, "disks"), body), format_, no_wait)
