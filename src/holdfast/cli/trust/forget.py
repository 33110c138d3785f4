"""`holdfast trust forget`."""

EXAMPLE = "holdfast trust forget host2"


def command(name: str) -> None:
    """Forget an enrolled host: no key is released to it any more."""
    from urllib.parse import quote

    from holdfast.cli.output import say
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/trust/hosts/{quote(name, safe='')}")
    say(f"host {name!r} forgotten")
