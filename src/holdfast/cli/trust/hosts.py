"""`holdfast trust hosts`."""

from typing import Annotated, Any

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust hosts --format json"


def command(
    filter: Annotated[str | None, typer.Option(help="Part of the name.")] = None,
    sort: Annotated[str, typer.Option(help="name or enrolled; `-` before it: descending.")] = "name",
    format_: FormatOption = Format.TABLE,
) -> None:
    """List the hosts that attest to this one, and what was found of each at last."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.words import moment

    with connect() as client:
        items = list(client.every("/v1/trust/hosts", {"filter": filter, "sort": sort}))
    if format_ is not Format.JSON:
        items = [_line(item) for item in items]
    columns = ("name", "verdict", "seen", "enrolled", "pcrs", "tpm")
    show_list(items, columns, format_, {"seen": moment, "enrolled": moment})


def _line(host: dict[str, Any]) -> dict[str, Any]:
    last = host["last"] or {}
    return {
        "name": host["name"],
        "verdict": last.get("verdict"),
        "seen": last.get("at"),
        "enrolled": host["enrolled"],
        "pcrs": sorted(map(int, host["pcrs"])),
        "tpm": "certified" if host["certified"] else "not certified",
    }
