"""`holdfast image import`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast image import disk.vmdk --name legacy"


def command(
    file: Annotated[Path, typer.Argument(help="qcow2, raw, VMDK, VHD, VHDX or ISO.")],
    name: Annotated[str | None, typer.Option(help="Name of the image.")] = None,
    kind: Annotated[str | None, typer.Option(help="disk, iso, kernel or initrd; none: found out.")] = None,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Send a file to the daemon and make an image of it."""
    from holdfast.cli.session import connect
    from holdfast.cli.uploading import import_file
    from holdfast.cli.waiting import finish

    with connect() as client:
        finish(client, import_file(client, file, kind, name or file.stem), format_, no_wait)
