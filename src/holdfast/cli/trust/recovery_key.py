"""`holdfast trust recovery-key`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust recovery-key web"


def command(
    name: VmArgument,
    new: Annotated[
        bool, typer.Option("--new", help="Make another one; the one before then opens nothing.")
    ] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Print a key that brings the VM's TPM back when the host's key is lost. It is shown once."""
    from holdfast.cli.recovery import show_recovery_key
    from holdfast.cli.session import connect

    with connect() as client:
        show_recovery_key(client, name, new, format_)
