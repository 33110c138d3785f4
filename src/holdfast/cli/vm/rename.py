"""`holdfast vm rename`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast vm rename web web-old"


def command(
    name: VmArgument,
    new_name: Annotated[str, typer.Argument(help="The new name.")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Give a VM another name."""
    from holdfast.api.client import vm_path
    from holdfast.cli.session import connect
    from holdfast.cli.vm_output import show_vm

    with connect() as client:
        show_vm(client, client.wire("POST", vm_path(name, "rename"), {"name": new_name}), format_)
