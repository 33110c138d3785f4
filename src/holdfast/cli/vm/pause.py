"""`holdfast vm pause`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast vm pause web"


def command(name: VmArgument, format_: FormatOption = Format.TABLE) -> None:
    """Stop a VM's CPUs; its memory stays."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    with connect() as client:
        view = client.wire("POST", vm_path(name, "pause"))
    if format_ is Format.JSON:
        print_json(view)
    else:
        say(f"{view['name']} is {view['state']}")
