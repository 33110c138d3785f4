"""`holdfast switch delete`."""

from holdfast.cli.names import SwitchArgument

EXAMPLE = "holdfast switch delete lan"


def command(name: SwitchArgument) -> None:
    """Delete a switch that nothing is plugged into."""
    from urllib.parse import quote

    from holdfast.cli.output import say
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/switches/{quote(name, safe='')}")
    say(f"switch {name!r} deleted")
