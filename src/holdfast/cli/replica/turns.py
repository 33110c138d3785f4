"""`holdfast replica turns`."""

from collections.abc import Callable
from typing import Any

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica turns --format json"


def command(format_: FormatOption = Format.TABLE) -> None:
    """List the VMs that failed over, or did once, and whether they run here or on the other host."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import moment

    with connect() as client:
        items = client.wire("GET", "/v1/replica/turns")
    words: dict[str, Callable[[Any], str | None]] = {"since": moment}
    show_list(items, ("name", "turn", "term", "peer", "since", "error"), format_, words)
