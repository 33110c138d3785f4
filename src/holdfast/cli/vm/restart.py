"""`holdfast vm restart`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait, StopTimeout

EXAMPLE = "holdfast vm restart web --timeout 120"


def command(
    name: VmArgument,
    timeout: StopTimeout = 90.0,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Ask the guest to shut down, and start it again."""
    from holdfast.api.client import vm_path
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import finish

    with connect() as client:
        wire = client.wire("POST", vm_path(name, "restart"), query={"timeout_seconds": timeout})
        finish(client, wire, format_, no_wait)
