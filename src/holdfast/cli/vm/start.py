"""`holdfast vm start`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast vm start web"


def command(name: VmArgument, no_wait: NoWait = False, format_: FormatOption = Format.TABLE) -> None:
    """Start a VM; a saved one goes on where it was."""
    from holdfast.api.client import vm_path
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    with connect() as client:
        finish(client, client.wire("POST", vm_path(name, "start")), format_, no_wait)
