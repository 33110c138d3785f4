"""`holdfast replica list`."""

from collections.abc import Callable
from typing import Any

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica list --format json"


def command(format_: FormatOption = Format.TABLE) -> None:
    """List the replicas of other hosts' VMs that this host holds."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import moment
    from holdfast.spec.units import format_size

    with connect() as client:
        items = client.wire("GET", "/v1/replica/held")
    words: dict[str, Callable[[Any], str | None]] = {
        "oldest": moment,
        "newest": moment,
        "used": format_size,
    }
    columns = ("name", "source", "connected", "points", "oldest", "newest", "used")
    show_list(items, columns, format_, words)
