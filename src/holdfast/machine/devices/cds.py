"""CD drives, full or empty; `cd-<id>` is the device that a change of medium names.

Linux's cloud kernels read no AHCI, and the installer of Windows reads no virtio: each gets its own.
The SCSI controller is not the disks', whose requests run in a thread of their own; it is there in
every machine, so that a drive can come while the machine runs.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from holdfast.machine.devices.disks import scsi_controller
from holdfast.machine.devices.ports import numbers
from holdfast.machine.devices.quoting import blockdev, device, option
from holdfast.spec.attachment import CdAttachment
from holdfast.spec.vm import GuestOs

SEED = "seed"
"""Id of the drive with the settings for cloud-init; nothing boots from it."""
_CONTROLLER = "scsi-cds"
_AHCI_PORTS = 6
_TARGETS = 256
_SEED_PLACE = _TARGETS - 1
"""The last target, so that the seed stays where it is when a drive is added."""
_MOST = 64 * _TARGETS
_FIRST_BOOT = 1


def cds(attachments: Sequence[CdAttachment], guest: GuestOs, queues: int | None = None) -> list[str]:
    """`queues` are those of the SCSI controller; None: one a CPU."""
    at_ahci = attachments[:_AHCI_PORTS] if guest is GuestOs.WINDOWS else ()
    at_scsi = attachments[len(at_ahci) :]
    parts = scsi_controller(_CONTROLLER, "0x8", queues)
    order = places(each.id for each in at_scsi)
    for index, each in enumerate(at_ahci):
        parts += blockdev(medium(each)) if each.path else []
        boot = None if each.id == SEED else _FIRST_BOOT + index
        node = node_name(each.id) if each.path else None
        parts += device("ide-cd", id=device_id(each.id), bus=f"ide.{index}", drive=node, bootindex=boot)
    for index, each in enumerate(at_scsi, len(at_ahci)):
        parts += blockdev(medium(each)) if each.path else []
        parts += option("-device", front(each, order[each.id], index))
    return parts


def places(ids: Iterable[str]) -> dict[str, int]:
    """Where each drive sits at the SCSI controller."""
    wanted = list(ids)
    found = numbers((each for each in wanted if each != SEED), _MOST)
    moved = {each: number + (number >= _SEED_PLACE) for each, number in found.items()}
    return moved | ({SEED: _SEED_PLACE} if SEED in wanted else {})


def device_id(drive: str) -> str:
    return f"cd-{drive}"


def node_name(drive: str) -> str:
    return f"medium-{drive}"


def medium(each: CdAttachment) -> dict[str, Any]:
    """The disc, as `blockdev-add` takes it (QAPI BlockdevOptions)."""
    file = {"driver": "file", "filename": str(each.path), "read-only": True}
    return {"driver": "raw", "node-name": node_name(each.id), "read-only": True, "file": file}


def front(each: CdAttachment, place: int, index: int) -> dict[str, Any]:
    """The drive at the SCSI controller, as `device_add` takes it.

    `index` is its number among the VM's drives, which the order of booting follows from.
    """
    at = {"channel": 0, "scsi-id": place % _TARGETS, "lun": place // _TARGETS}
    drive = {"drive": node_name(each.id)} if each.path else {}
    boot = {} if each.id == SEED else {"bootindex": _FIRST_BOOT + index}
    return {
        "driver": "scsi-cd",
        "id": device_id(each.id),
        "bus": f"{_CONTROLLER}.0",
        **at,
        **drive,
        **boot,
    }
