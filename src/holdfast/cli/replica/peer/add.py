"""`holdfast replica peer add`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica peer add south https://192.0.2.7:8444 --token-file token.txt"


def command(
    name: Annotated[str, typer.Argument(help="What the receiving host is to be called here.")],
    address: Annotated[str, typer.Argument(help="https://HOST:PORT; an IPv6 address in brackets.")],
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token; `-`: standard input. None: it is asked for.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="The token itself; other users of this host may see it.")
    ] = None,
    own_name: Annotated[
        str | None, typer.Option(help="What this host is to be called there; none: its host name.")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Pair with a host that made a token by `holdfast replica accept`."""
    from holdfast.cli.output import print_json, say
    from holdfast.cli.secret_input import given
    from holdfast.cli.session import connect

    secret = token if token is not None else given(token_file, "Token")
    asked = {"name": name, "address": address, "token": secret, "own_name": own_name}
    with connect() as client:
        made = client.wire("POST", "/v1/replica/peers", asked)
    if format_ is Format.JSON:
        print_json(made)
    else:
        say(f"paired with {made['name']!r} at {made['address']} ({made['fingerprint']})")
