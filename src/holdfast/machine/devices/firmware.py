"""UEFI in two flash chips: OVMF's code, read-only, and the VM's own variables.

With System Management Mode only the firmware itself can write the variables: what makes Secure
Boot hold against the guest's kernel (edk2, OvmfPkg/README, "SMM support").
"""

from holdfast.machine.devices.quoting import blockdev
from holdfast.spec.attachment import FirmwareAttachment


def firmware(attachment: FirmwareAttachment | None) -> list[str]:
    if attachment is None:
        return []
    parts: list[str] = []
    for node, path, fixed in (("fw", attachment.code, True), ("vars", attachment.variables, False)):
        file = {"driver": "file", "filename": str(path), "read-only": fixed}
        parts += blockdev({"driver": "raw", "node-name": node, "read-only": fixed, "file": file})
    if attachment.smm:
        parts += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    return parts
