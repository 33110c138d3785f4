"""CD drives, full or empty; `cd-<id>` is the device that a change of medium names.

Linux's cloud kernels read no AHCI, and the installer of Windows reads no virtio: each gets its own.
The controller is not the disks', whose requests run in a thread of their own.
"""

from collections.abc import Sequence

from holdfast.machine.devices.disks import scsi_controller
from holdfast.machine.devices.quoting import blockdev, device
from holdfast.spec.attachment import CdAttachment
from holdfast.spec.vm import GuestOs

SEED = "seed"
"""Id of the drive with the settings for cloud-init; nothing boots from it."""
_AHCI_PORTS = 6
_TARGETS = 256
_FIRST_BOOT = 1


def cds(attachments: Sequence[CdAttachment], guest: GuestOs, queues: int | None = None) -> list[str]:
    """`queues` are those of the SCSI controller; None: one a CPU."""
    at_ahci = attachments[:_AHCI_PORTS] if guest is GuestOs.WINDOWS else ()
    parts: list[str] = []
    if len(attachments) > len(at_ahci):
        parts += scsi_controller("scsi-cds", "0x8", queues)
    for index, each in enumerate(attachments):
        node = f"cd{index}" if each.path else None
        if each.path:
            file = {"driver": "file", "filename": str(each.path), "read-only": True}
            parts += blockdev({"driver": "raw", "node-name": node, "read-only": True, "file": file})
        boot = None if each.id == SEED else _FIRST_BOOT + index
        if index < len(at_ahci):
            parts += device("ide-cd", id=f"cd-{each.id}", bus=f"ide.{index}", drive=node, bootindex=boot)
            continue
        place = index - len(at_ahci)
        parts += device(
            "scsi-cd",
            id=f"cd-{each.id}",
            bus="scsi-cds.0",
            channel=0,
            scsi_id=place % _TARGETS,
            lun=place // _TARGETS,
            drive=node,
            bootindex=boot,
        )
    return parts
