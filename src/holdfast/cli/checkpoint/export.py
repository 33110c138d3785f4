"""`holdfast checkpoint export`."""

from holdfast.cli.checkpoint_paths import CheckpointArgument, VmOption
from holdfast.cli.exporting import (
    PassphraseOption,
    RecipientOption,
    SignCertOption,
    SignKeyOption,
    ToOption,
    WordsOption,
)

EXAMPLE = "holdfast checkpoint export web before-upgrade --to before-upgrade.ova --recipient backup.pem"


def command(
    vm: VmOption,
    name: CheckpointArgument,
    to: ToOption,
    format_: WordsOption = None,
    passphrase_file: PassphraseOption = None,
    recipient: RecipientOption = None,
    sign_key: SignKeyOption = None,
    sign_cert: SignCertOption = None,
) -> None:
    """Write what a VM was at a checkpoint to an OVA file or a folder, with its firmware state.

    As `vm export --checkpoint`; the VM may run. The firmware state is encrypted for a passphrase (asked for
    where no file names it) or for the owner of a public key. Memory is not exported.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.checkpoint_paths import checkpoint_path
    from holdfast.cli.exporting import export
    from holdfast.cli.session import connect

    with connect() as client:
        has_state = client.wire("GET", checkpoint_path(vm, name))["has_firmware_state"]
        export(
            client,
            vm_path(vm, "export"),
            {"checkpoint": name},
            to,
            words=format_,
            state_path=checkpoint_path(vm, name, "firmware-state") if has_state else None,
            locks=(passphrase_file, recipient),
            sign=(sign_key, sign_cert),
        )
