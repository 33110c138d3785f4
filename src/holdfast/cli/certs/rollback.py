"""`holdfast certs rollback`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast certs rollback web"


def command(name: VmArgument, no_wait: NoWait = False, format_: FormatOption = Format.TABLE) -> None:
    """Bring back the keys from before the last change, or drop one that waits for the next start."""
    from holdfast.api.client import vm_path
    from holdfast.cli.output import say
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.certificates import outcomes
    from holdfast.cli.waiting import finish

    with connect() as client:
        done = finish(client, client.wire("POST", vm_path(name, "certs/rollback")), format_, no_wait)
    for line in outcomes(done):
        say(line)
