"""`holdfast replica remove`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast replica remove web"


def command(
    name: Annotated[str, typer.Argument(help="As `holdfast replica list` names it.")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Remove a replica that this host holds, with all its points."""
    from urllib.parse import quote

    from holdfast.cli.output import say_deleted
    from holdfast.cli.session import connect

    with connect() as client:
        client.wire("DELETE", f"/v1/replica/held/{quote(name, safe='')}")
    say_deleted("replica", name, format_)
