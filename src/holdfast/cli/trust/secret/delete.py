"""`holdfast trust secret delete`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust secret delete web disk-key"


def command(
    name: VmArgument,
    secret: Annotated[str, typer.Argument(metavar="SECRET", help="Its name.")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Delete a secret that is kept for a VM; a guest that was given it keeps it."""
    from urllib.parse import quote

    from holdfast.cli.output import say_deleted
    from holdfast.cli.session import connect
    from holdfast.cli.trust_paths import trust_path

    with connect() as client:
        client.wire("DELETE", trust_path(name, f"secrets/{quote(secret, safe='')}"))
    say_deleted("secret", secret, format_)
