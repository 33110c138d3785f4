"""`holdfast trust import-state`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust import-state web web.hfstate --passphrase-file secret"


def command(
    name: VmArgument,
    file: Annotated[Path, typer.Argument(help="What `export-state` wrote.")],
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File with the passphrase in its first line; -: standard input.")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option(help="The recipient's private key (PEM); it stays on this machine.")
    ] = None,
    same_tpm: Annotated[
        bool, typer.Option("--same-tpm", help="Take over the TPM identity of another VM.")
    ] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Give a VM that is off the firmware state in a file, in place of its own.

    All of it is checked before anything is changed, and the former state is kept until the new one is whole.
    """
    from holdfast.api.client import vm_path
    from holdfast.api.content_key import content_key
    from holdfast.cli.output import say
    from holdfast.cli.secret_input import passphrase
    from holdfast.cli.session import connect
    from holdfast.cli.uploading import NoSuchFile
    from holdfast.cli.vm_output import show_vm

    if not file.is_file():
        raise NoSuchFile(f"{str(file)!r} is not a file", value=str(file), cure="Check the path.")
    body: dict[str, Any] = {"same_tpm": same_tpm}
    if private_key is not None:
        body["content_key"] = content_key(file, private_key)
    if private_key is None or passphrase_file is not None:
        body["passphrase"] = passphrase(passphrase_file)
    with connect() as client:
        body["upload"] = client.upload(file).id
        vm = client.wire("POST", vm_path(name, "firmware-state/import"), body)
        taken_over = vm["spec"]["boot"].get("tpm_identity")
        say(f"{name} has the firmware state of {file}.")
        if taken_over:
            say(f"It took over the TPM identity of VM {taken_over}: the two must never both run.")
        if format_ is Format.JSON:
            show_vm(client, vm, format_)
