"""`holdfast image delete`."""

from holdfast.cli.names import ImageArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast image delete debian-12"


def command(name: ImageArgument, format_: FormatOption = Format.TABLE) -> None:
    """Delete an image's name; the content goes with its last name."""
    from urllib.parse import quote

    from holdfast.cli.output import say_deleted
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/images/{quote(name, safe='')}")
    say_deleted("image", name, format_)
