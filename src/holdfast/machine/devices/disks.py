"""Disks: `file f -> format d -> throttle th -> device`, every node named, the chain given whole.

The throttle node has no limits; it is the place where filters are put in and taken out while the
guest runs. `0` in the names below is the disk's index.

    f0 -> d0 ------> th0 -> device disk-<id>
          |backing
    f0-1 -> d0-1 -> ... (read-only)
"""

from collections.abc import Sequence
from typing import Any

from holdfast.machine.devices.ports import DISK_PORTS
from holdfast.machine.devices.quoting import backend, blockdev, device
from holdfast.spec.attachment import DiskAttachment, Layer
from holdfast.spec.vm import DiskBus

_THREAD = "io0"
_FIRST_BOOT = 1000  # after every CD drive
_TARGETS = 256
_CACHE = {"direct": False, "no-flush": False}


def disks(attachments: Sequence[DiskAttachment], *, io_uring: bool) -> list[str]:
    """Raises TooManyDevices."""
    parts: list[str] = []
    if any(each.bus is not DiskBus.NVME for each in attachments):
        parts += backend("iothread", id=_THREAD)
    places = DISK_PORTS.places(each.id for each in attachments if each.bus is not DiskBus.SCSI)
    parts += DISK_PORTS.ports(places.values())
    controller = _THREAD if any(each.bus is DiskBus.SCSI for each in attachments) else None
    parts += device("virtio-scsi-pci", id="scsi0", bus="pcie.0", addr="0x7", iothread=controller)
    for index, each in enumerate(attachments):
        parts += _chain(index, each, io_uring)
        parts += _front(index, each, places.get(each.id))
    return parts


def _chain(index: int, attachment: DiskAttachment, io_uring: bool) -> list[str]:
    parts: list[str] = []
    below: str | None = None
    for depth in range(len(attachment.layers) - 1, -1, -1):
        layer, name = attachment.layers[depth], f"{index}-{depth}" if depth else f"{index}"
        discard = attachment.discard and depth == 0
        if below is not None and layer.format != "qcow2":
            raise ValueError(f"{layer.path}: a {layer.format} file has nothing below it")
        parts += blockdev(_file(layer, f"f{name}", depth > 0, discard, io_uring))
        parts += blockdev(_format(layer, name, depth > 0, discard, below))
        below = f"d{name}"
    group = f"tg{index}"
    parts += backend("throttle-group", id=group)
    return parts + blockdev(
        {"driver": "throttle", "node-name": f"th{index}", "throttle-group": group, "file": f"d{index}"}
    )


def _file(layer: Layer, node: str, fixed: bool, discard: bool, io_uring: bool) -> dict[str, Any]:
    return {
        "driver": "file",
        "node-name": node,
        "filename": str(layer.path),
        "aio": "io_uring" if io_uring else "threads",
        "read-only": fixed,
        "cache": _CACHE,
        **({"discard": "unmap"} if discard else {}),
    }


def _format(layer: Layer, name: str, fixed: bool, discard: bool, below: str | None) -> dict[str, Any]:
    return {
        "driver": layer.format,
        "node-name": f"d{name}",
        "file": f"f{name}",
        "read-only": fixed,
        "cache": _CACHE,
        **({"discard": "unmap", "detect-zeroes": "unmap"} if discard else {}),
        **({"backing": below} if layer.format == "qcow2" else {}),
    }


def _front(index: int, attachment: DiskAttachment, place: int | None) -> list[str]:
    shared = {
        "id": f"disk-{attachment.id}",
        "drive": f"th{index}",
        "serial": attachment.id,
        "bootindex": _FIRST_BOOT + index,
    }
    if place is None:
        target, lun = index % _TARGETS, index // _TARGETS
        return device("scsi-hd", bus="scsi0.0", channel=0, scsi_id=target, lun=lun, **shared)
    bus = DISK_PORTS.port(place)
    if attachment.bus is DiskBus.NVME:
        return device("nvme", bus=bus, **shared)
    return device("virtio-blk-pci", bus=bus, iothread=_THREAD, **shared)
