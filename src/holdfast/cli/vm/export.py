"""`holdfast vm export`."""

from typing import Annotated

import typer

from holdfast.cli.exporting import (
    PassphraseOption,
    RecipientOption,
    SignCertOption,
    SignKeyOption,
    ToOption,
    WordsOption,
)
from holdfast.cli.names import VmArgument

EXAMPLE = "holdfast vm export web --to web.ova --with-firmware-state --recipient backup.pem"


def command(
    name: VmArgument,
    to: ToOption,
    format_: WordsOption = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Export what the VM was at a checkpoint; it may run.")
    ] = None,
    with_firmware_state: Annotated[
        bool, typer.Option(help="Take UEFI variables and TPM along, encrypted.")
    ] = False,
    passphrase_file: PassphraseOption = None,
    recipient: RecipientOption = None,
    sign_key: SignKeyOption = None,
    sign_cert: SignCertOption = None,
) -> None:
    """Write a VM that is off to an OVA file or a folder: OVF descriptor, manifest and disks.

    Other platforms read it; Holdfast brings it back with `vm import`. The firmware state, if asked for, is
    encrypted for a passphrase (asked for where no file names it) or for the owner of a public key.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.checkpoint_paths import checkpoint_path
    from holdfast.cli.exporting import export
    from holdfast.cli.session import connect

    state_path = (
        vm_path(name, "firmware-state/export")
        if checkpoint is None
        else checkpoint_path(name, checkpoint, "firmware-state")
    )
    with connect() as client:
        export(
            client,
            vm_path(name, "export"),
            {"checkpoint": checkpoint},
            to,
            words=format_,
            state_path=state_path if with_firmware_state else None,
            locks=(passphrase_file, recipient),
            sign=(sign_key, sign_cert),
        )
