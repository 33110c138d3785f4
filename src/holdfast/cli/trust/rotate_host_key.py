"""`holdfast trust rotate-host-key`."""

from typing import Annotated

import typer

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust rotate-host-key"


def command(
    to: Annotated[
        str | None, typer.Option(help="tpm or file; none: the host's TPM where it has one.")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Give this host a new key and wrap every VM's key by it; VMs run on.

    Before a planned change of the host's firmware or boot loader move the key to a file (--to file), since
    the TPM does not release it afterwards; then back (--to tpm).
    """
    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    with connect() as client:
        done = client.wire("POST", "/v1/host/key/rotate", {"to": to})
    if format_ is Format.JSON:
        print_json(done)
        return
    say(f"The host has a new key, {done['id']}, {done['words']}.")
    say(f"{done['rewrapped']} VMs' keys were wrapped by it.")
    for name in done["unreadable"]:
        say(f"The key of {name} does not open here: bring it back with `holdfast trust recover {name}`.")
