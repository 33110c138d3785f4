"""The TPM 2.0: QEMU's command-response-buffer interface before a swtpm process."""

from holdfast.machine.devices.quoting import device, quoted
from holdfast.spec.attachment import TpmAttachment


def tpm(attachment: TpmAttachment | None) -> list[str]:
    if attachment is None:
        return []
    channel = ["-chardev", f"socket,id=tpm,path={quoted(attachment.socket)}"]
    return [
        *channel,
        "-tpmdev",
        "emulator,id=tpm0,chardev=tpm",
        *device("tpm-crb", id="tpm-crb", tpmdev="tpm0"),
    ]
