"""`holdfast vm log`."""

import sys
from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast vm log web --source qemu"


def command(
    name: VmArgument,
    lines: Annotated[int, typer.Option(help="How many of the last.")] = 100,
    source: Annotated[str, typer.Option(help="console, qemu or swtpm.")] = "console",
    format_: FormatOption = Format.TABLE,
) -> None:
    """The last lines of a VM's console or of its processes' logs."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import escape, print_json
    from holdfast.cli.session import connect

    with connect() as client:
        found = client.wire("GET", vm_path(name, "log"), query={"lines": lines, "source": source})
    if format_ is Format.JSON:
        print_json(found)
        return
    for line in found:
        sys.stdout.write(escape(line, keep="\t") + "\n")
