"""`holdfast host check`."""

import shutil
import sys

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast host check"


def command(format_: FormatOption = Format.TABLE) -> None:
    """What this host can do, and the cure for what it cannot."""
    from holdfast.cli.output import print_json
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.check import check_sheet

    with connect() as client:
        lines = client.wire("GET", "/v1/host/check")
    if format_ is Format.JSON:
        print_json(lines)
    else:
        sys.stdout.write(check_sheet(lines, shutil.get_terminal_size((100, 24)).columns))
