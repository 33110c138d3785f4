"""What `vm export` and `checkpoint export` share: their options, and one way to make and fetch an export."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Word(StrEnum):
    """Of `--format`: what the disks become, and how the result is shown."""

    VMDK = "vmdk"
    QCOW2 = "qcow2"
    VHDX = "vhdx"
    RAW = "raw"
    TABLE = "table"
    JSON = "json"


ToOption = Annotated[
    Path, typer.Option(help="A file FILE.ova, or a folder to make; neither may exist.", metavar="PATH")
]
WordsOption = Annotated[
    list[Word] | None,
    typer.Option(
        "--format",
        help="Of the disks: vmdk (default), qcow2, vhdx or raw. Also json: show the result as JSON.",
    ),
]
PassphraseOption = Annotated[
    Path | None, typer.Option(help="File with the passphrase in its first line; -: standard input.")
]
RecipientOption = Annotated[
    Path | None, typer.Option(help="Public key or certificate (PEM) of who may open the firmware state.")
]
SignKeyOption = Annotated[
    Path | None, typer.Option(help="Private key (PEM) to sign the manifest with; it stays here.")
]
SignCertOption = Annotated[Path | None, typer.Option(help="Certificate (PEM) of that key.")]


def export(
    client: Any,
    path: str,
    body: dict[str, Any],
    to: Path,
    *,
    words: list[Word] | None,
    state_path: str | None,
    locks: tuple[Path | None, Path | None],
    sign: tuple[Path | None, Path | None],
) -> None:
    """Make an export, fetch it to a file or folder, whole or not at all, and tell of it.

    Args:
        path, body: of the request that makes it; `body` also stands in the result.
        state_path: where its firmware state is fetched; None leaves that out.
        locks: files with the passphrase and with the public key that lock it.
        sign: files with the key and the certificate that sign the manifest.
    """
    from holdfast.cli.export_files import Package, Signer
    from holdfast.cli.output import print_json, say
    from holdfast.cli.waiting import ended
    from holdfast.spec.units import format_size

    disks, as_json = _meant(words or [])
    signer = Signer.of_files(*sign)
    with Package(to) as package:
        asked = body | {"format": disks}
        if state_path is not None:
            asked["firmware_state"] = package.keep_state(client.content("POST", state_path, _lock(*locks)))
        made = ended(client, client.wire("POST", path, asked)).result
        try:
            files = package.fill(client, made, signer)
        finally:
            client.wire("DELETE", f"/v1/exports/{made['export']}")
    if as_json:
        print_json({"vm": made["vm"], **body, "path": str(to), "files": files, "signed": signer is not None})
        return
    say(f"Wrote {to}: {', '.join(f'{file} ({format_size(size)})' for file, size in files.items())}.")
    if state_path is not None:
        say("Whoever opens its firmware state has the VM's TPM, and every secret that is sealed in it.")


def _meant(words: list[Word]) -> tuple[str, bool]:
    """The format of the disks, and whether the result is wanted as JSON."""
    disks = [word.value for word in words if word not in (Word.TABLE, Word.JSON)]
    if len(disks) > 1:
        raise typer.BadParameter("name one format of disks", param_hint="--format")
    return disks[0] if disks else Word.VMDK.value, Word.JSON in words


def _lock(passphrase_file: Path | None, recipient: Path | None) -> dict[str, str]:
    from holdfast.cli.secret_input import passphrase
    from holdfast.cli.uploading import text_of

    body: dict[str, str] = {}
    if recipient is not None:
        body["recipient"] = text_of(str(recipient))
    if recipient is None or passphrase_file is not None:
        body["passphrase"] = passphrase(passphrase_file, twice=True)
    return body
