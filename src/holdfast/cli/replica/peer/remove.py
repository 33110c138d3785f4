"""`holdfast replica peer remove`."""

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica peer remove south"


def command(name: str, format_: FormatOption = Format.TABLE) -> None:
    """Forget a host: nothing is sent to it, or taken from it, any more. Replicas stay."""
    from urllib.parse import quote

    from holdfast.cli.output import say_deleted
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/replica/peers/{quote(name, safe='')}")
    say_deleted("peer", name, format_)
