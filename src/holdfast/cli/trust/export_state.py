"""`holdfast trust export-state`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust export-state web --to web.hfstate --recipient backup.pem"


def command(
    name: VmArgument,
    to: Annotated[Path, typer.Option(help="File to write; it must not exist.")],
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File with the passphrase in its first line; -: standard input.")
    ] = None,
    recipient: Annotated[
        Path | None, typer.Option(help="Public key or certificate (PEM) of who may open it.")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Write the firmware state of a VM that is off, encrypted, to a file.

    That is its UEFI variables and its TPM with everything sealed in it. It is encrypted for a passphrase
    (asked for where no file names it) or for the owner of a public key.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.output import print_json, say
    from holdfast.cli.secret_input import passphrase
    from holdfast.cli.session import connect
    from holdfast.cli.uploading import text_of
    from holdfast.cli.writing import write_new

    body: dict[str, str] = {}
    if recipient is not None:
        body["recipient"] = text_of(str(recipient))
    if recipient is None or passphrase_file is not None:
        body["passphrase"] = passphrase(passphrase_file, twice=True)
    with connect() as client:
        data = client.content("POST", vm_path(name, "firmware-state/export"), body)
    write_new(to, data)
    if format_ is Format.JSON:
        print_json({"vm": name, "file": str(to), "size": len(data)})
        return
    say(f"Wrote the firmware state of {name} to {to}.")
    say("Whoever opens it has the VM's TPM: its identity, and every secret that is sealed in it.")
