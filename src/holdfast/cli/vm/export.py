"""`holdfast vm export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.names import VmArgument

EXAMPLE = "holdfast vm export web --to web.ova --with-firmware-state --recipient backup.pem"


class Word(StrEnum):
    """Of `--format`: what the disks become, and how the result is shown."""

    VMDK = "vmdk"
    QCOW2 = "qcow2"
    VHDX = "vhdx"
    RAW = "raw"
    TABLE = "table"
    JSON = "json"


def command(
    name: VmArgument,
    to: Annotated[
        Path, typer.Option(help="A file FILE.ova, or a folder to make; neither may exist.", metavar="PATH")
    ],
    format_: Annotated[
        list[Word] | None,
        typer.Option(
            "--format",
            help="Of the disks: vmdk (default), qcow2, vhdx or raw. Also json: show the result as JSON.",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Export what the VM was at a checkpoint; it may run.")
    ] = None,
    with_firmware_state: Annotated[
        bool, typer.Option(help="Take UEFI variables and TPM along, encrypted.")
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File with the passphrase in its first line; -: standard input.")
    ] = None,
    recipient: Annotated[
        Path | None, typer.Option(help="Public key or certificate (PEM) of who may open the firmware state.")
    ] = None,
    sign_key: Annotated[
        Path | None, typer.Option(help="Private key (PEM) to sign the manifest with; it stays here.")
    ] = None,
    sign_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM) of that key.")] = None,
) -> None:
    """Write a VM that is off to an OVA file or a folder: OVF descriptor, manifest and disks.

    Other platforms read it; Holdfast brings it back with `vm import`. The firmware state, if asked for, is
    encrypted for a passphrase (asked for where no file names it) or for the owner of a public key.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.export_files import Package, Signer
    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect
    from holdfast.cli.waiting import ended
    from holdfast.spec.units import format_size

    disks, as_json = _words(format_ or [])
    signer = Signer.of_files(sign_key, sign_cert)
    body: dict[str, Any] = {"format": disks, "checkpoint": checkpoint}
    with connect() as client, Package(to) as package:
        if with_firmware_state:
            state = _firmware_state(client, name, checkpoint, passphrase_file, recipient)
            body["firmware_state"] = package.keep_state(state)
        made = ended(client, client.wire("POST", vm_path(name, "export"), body)).result
        try:
            files = package.fill(client, made, signer)
        finally:
            client.wire("DELETE", f"/v1/exports/{made['export']}")
    if as_json:
        print_json({"vm": name, "path": str(to), "files": files, "signed": signer is not None})
        return
    say(f"Wrote {to}: {', '.join(f'{file} ({format_size(size)})' for file, size in files.items())}.")
    if with_firmware_state:
        say("Whoever opens its firmware state has the VM's TPM, and every secret that is sealed in it.")


def _words(words: list[Word]) -> tuple[str, bool]:
    """The format of the disks, and whether the result is wanted as JSON."""
    disks = [word.value for word in words if word not in (Word.TABLE, Word.JSON)]
    if len(disks) > 1:
        raise typer.BadParameter("name one format of disks", param_hint="--format")
    return disks[0] if disks else Word.VMDK.value, Word.JSON in words


def _firmware_state(
    client: Any, name: str, checkpoint: str | None, passphrase_file: Path | None, recipient: Path | None
) -> bytes:
    from holdfast.api.client import vm_path
    from holdfast.cli.checkpoint_paths import checkpoint_path
    from holdfast.cli.secret_input import passphrase
    from holdfast.cli.uploading import text_of

    body: dict[str, str] = {}
    if recipient is not None:
        body["recipient"] = text_of(str(recipient))
    if recipient is None or passphrase_file is not None:
        body["passphrase"] = passphrase(passphrase_file, twice=True)
    path = (
        vm_path(name, "firmware-state/export")
        if checkpoint is None
        else checkpoint_path(name, checkpoint, "firmware-state")
    )
    content: bytes = client.content("POST", path, body)
    return content
