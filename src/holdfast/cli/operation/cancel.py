"""`holdfast operation cancel`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast operation cancel 3f0c6a52-..."


def command(
    operation_id: Annotated[str, typer.Argument(metavar="ID", help="See `holdfast operation list`.")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Ask an operation to stop and be undone."""
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.operation import operation_sheet

    with connect() as client:
        show(client.cancel(operation_id).model_dump(mode="json"), format_, operation_sheet)
