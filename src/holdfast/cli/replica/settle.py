"""`holdfast replica settle`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast replica settle web"


def command(name: VmArgument, no_wait: NoWait = False, format_: FormatOption = Format.TABLE) -> None:
    """Copy what a VM still reads from a replica into volumes of its own, also while it runs."""
    from holdfast.api.client import vm_path
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    with connect() as client:
        finish(client, client.wire("POST", vm_path(name, "replica-settle")), format_, no_wait)
