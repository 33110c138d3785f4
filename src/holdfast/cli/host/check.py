"""`holdfast host check`."""

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast host check"


def command(format_: FormatOption = Format.TABLE) -> None:
    """What this host can do, and the cure for what it cannot."""
    from holdfast.cli.output import show_list
    from holdfast.cli.session import connect

    with connect() as client:
        show_list(client.wire("GET", "/v1/host/check"), ("status", "title", "text", "cure"), format_)
