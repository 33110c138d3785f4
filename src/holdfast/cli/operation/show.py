"""`holdfast operation show`."""

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast operation show 3f0c6a52-..."


def command(name: str, format_: FormatOption = Format.TABLE) -> None:
    """Show an operation."""
    from urllib.parse import quote

    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.operation import operation_sheet

    with connect() as client:
        show(client.wire("GET", f"/v1/operations/{quote(name, safe='')}"), format_, operation_sheet)
