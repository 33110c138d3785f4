"""`holdfast vm screenshot`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.names import VmArgument

EXAMPLE = "holdfast vm screenshot web -o web.png"


def command(
    name: VmArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")],
) -> None:
    """Write what the VM's screen shows to a file."""
    from holdfast.cli.session import connect

    with connect() as client:
        output.write_bytes(client.screenshot(name))
