"""`holdfast image show`."""

from holdfast.cli.names import ImageArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast image show debian-12"


def command(name: ImageArgument, format_: FormatOption = Format.TABLE) -> None:
    """Show an image."""
    from urllib.parse import quote

    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.image import image_sheet

    with connect() as client:
        show(client.wire("GET", f"/v1/images/{quote(name, safe='')}"), format_, image_sheet)
