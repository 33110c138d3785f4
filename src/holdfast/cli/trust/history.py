"""`holdfast trust history`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust history web --limit 10"


def command(
    name: VmArgument,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 20,
    format_: FormatOption = Format.TABLE,
) -> None:
    """List the verdicts on a VM, the newest first."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.trust import failures
    from holdfast.cli.sheets.words import moment
    from holdfast.cli.trust_paths import trust_path

    with connect() as client:
        page = client.wire("GET", trust_path(name, "history"), query={"limit": limit})
    columns = ("number", "time", "verdict", "policy", "findings")
    show_list(page["items"], columns, format_, {"time": moment, "findings": failures})
