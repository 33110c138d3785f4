"""`holdfast token delete`."""

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast token delete ci"


def command(name: str, format_: FormatOption = Format.TABLE) -> None:
    """Revoke a token, from this moment on."""
    from urllib.parse import quote

    from holdfast.cli.output import say_deleted
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/tokens/{quote(name, safe='')}")
    say_deleted("token", name, format_)
