"""`holdfast vm screenshot`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.spec.errors import InvalidInput


class CannotWrite(InvalidInput):
    id = "cannot-write-file"


EXAMPLE = "holdfast vm screenshot web -o web.png"


def command(
    name: VmArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG file to write; none: NAME.png.")
    ] = None,
) -> None:
    """Write what the VM's screen shows to a file."""
    from holdfast.cli.output import say
    from holdfast.cli.session import connect

    target = output or Path(f"{name}.png")
    with connect() as client:
        picture = client.screenshot(name)
    try:
        target.write_bytes(picture)
    except OSError as error:
        raise CannotWrite(
            f"{str(target)!r} cannot be written: {error.strerror}",
            value=str(target),
            cure="Name another file with --output.",
        ) from error
    say(f"Wrote {target}")
