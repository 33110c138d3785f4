"""`holdfast trust schedule`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.spec.errors import InvalidInput

EXAMPLE = "holdfast trust schedule web --every 900"


class NoSuchSchedule(InvalidInput):
    id = "no-such-schedule"


def command(
    name: VmArgument,
    every: Annotated[int | None, typer.Option(help="Seconds between two attestations.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Attest only when asked.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Attest a VM again and again while it runs; an event and a metric tell when its verdict changes."""
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.trust import trust_sheet
    from holdfast.cli.trust_paths import trust_path

    if off is (every is not None):
        raise NoSuchSchedule("a schedule is either an interval or off", cure="Give --every SECONDS or --off.")
    with connect() as client:
        view = client.wire("PUT", trust_path(name, "schedule"), {"interval_seconds": every})
    show(view, format_, trust_sheet)
