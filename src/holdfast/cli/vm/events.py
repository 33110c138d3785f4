"""`holdfast vm events`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast vm events web --follow"


def command(
    name: VmArgument,
    limit: Annotated[int, typer.Option(help="How many of the newest.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """What happened to a VM, oldest first."""
    from holdfast.cli.event.list import print_events

    print_events(name, limit, follow, format_)
