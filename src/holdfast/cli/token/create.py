"""`holdfast token create`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast token create ci --role operator --days 90"


def command(
    name: Annotated[str, typer.Argument(help="A name for the token.")],
    role: Annotated[str, typer.Option(help="admin, operator or viewer.")] = "viewer",
    days: Annotated[float | None, typer.Option(help="How long it holds; none: until deleted.")] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Make a token. The secret is printed on stdout, once; it cannot be had again."""
    import sys

    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    with connect() as client:
        made = client.wire("POST", "/v1/tokens", {"name": name, "role": role, "days": days})
    if format_ is Format.JSON:
        print_json(made)
        return
    if made["fingerprint"]:
        say(f"Certificate to pin (HOLDFAST_FINGERPRINT): {made['fingerprint']}")
    sys.stdout.write(made["secret"] + "\n")
