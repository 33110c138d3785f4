"""`holdfast replica explain`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica explain web"


def command(
    vm: Annotated[str, typer.Argument(help="A VM that is replicated, or a replica that this host holds.")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Explain why a replica is as it is: what is wrong, since when, where, what was tried, what to do."""
    import sys
    from urllib.parse import quote

    from holdfast.cli.output import print_json
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.replica import explanation_text

    with connect() as client:
        found = client.wire("GET", f"/v1/replica/explain/{quote(vm, safe='')}")
    if format_ is Format.JSON:
        print_json(found)
    else:
        sys.stdout.write("\n".join(explanation_text(each) for each in found))
