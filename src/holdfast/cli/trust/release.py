"""`holdfast trust release`."""

from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.waiting import NoWait

EXAMPLE = "holdfast trust release web disk-key --to /run/keys/disk"


def command(
    name: VmArgument,
    secret: Annotated[str, typer.Argument(metavar="SECRET", help="Its name, as `trust secret add` kept it.")],
    to: Annotated[
        str | None, typer.Option(help="File in the guest; else one of its name in /run/holdfast/secrets.")
    ] = None,
    no_wait: NoWait = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Attest a VM, and give its guest a secret if it passes at this moment."""
    from holdfast.cli.session import connect
    from holdfast.cli.trust_paths import trust_path
    from holdfast.cli.waiting import finish

    with connect() as client:
        wire = client.wire("POST", trust_path(name, "release"), {"name": secret, "path": to})
        finish(client, wire, format_, no_wait)
