"""`holdfast token delete`."""

EXAMPLE = "holdfast token delete ci"


def command(name: str) -> None:
    """Revoke a token, from this moment on."""
    from urllib.parse import quote

    from holdfast.cli.output import say
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/tokens/{quote(name, safe='')}")
    say(f"token {name!r} deleted")
