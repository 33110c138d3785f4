"""`holdfast vm save`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast vm save web"


def command(name: VmArgument, no_wait: NoWait = False, format_: FormatOption = Format.TABLE) -> None:
    """Write a running VM's memory to disk and end its process."""
    from holdfast.api.client import vm_path
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    with connect() as client:
        finish(client, client.wire("POST", vm_path(name, "save")), format_, no_wait)
