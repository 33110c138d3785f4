"""Disks: `file f -> format d -> throttle th -> device`, every node named, the chain given whole.

Nodes are named by the layer that they are of, and the throttle node by the disk, so that a name
says the same thing before and after layers come and go. The throttle node is the place where
filters and new layers are put in and taken out while the guest runs.

    f-disk0-1 -> d-disk0-1 ------> th-disk0 -> device disk-disk0
                 |backing
    f-disk0   -> d-disk0 -> ... (read-only)
"""

from collections.abc import Sequence
from typing import Any

from holdfast.machine.devices.ports import DISK_PORTS, numbers
from holdfast.machine.devices.quoting import backend, blockdev, device, option
from holdfast.spec.attachment import DiskAttachment, Layer
from holdfast.spec.vm import DiskBus

IO_THREAD = "io0"
SCSI_CONTROLLER = "scsi0"
_FIRST_BOOT = 1000  # after every CD drive
_TARGETS = 256
_MOST = 64 * _TARGETS
_CACHE = {"direct": False, "no-flush": False}


def disks(attachments: Sequence[DiskAttachment], *, io_uring: bool) -> list[str]:
    """Raises TooManyDevices."""
    parts: list[str] = []
    if any(each.bus is not DiskBus.NVME for each in attachments):
        parts += backend("iothread", id=IO_THREAD)
    places = DISK_PORTS.places(each.id for each in attachments if each.bus is not DiskBus.SCSI)
    parts += DISK_PORTS.ports(places.values())
    controller = IO_THREAD if any(each.bus is DiskBus.SCSI for each in attachments) else None
    parts += device("virtio-scsi-pci", id=SCSI_CONTROLLER, bus="pcie.0", addr="0x7", iothread=controller)
    order = numbers((each.id for each in attachments), _MOST)
    for each in attachments:
        for node in chain_nodes(each, io_uring):
            parts += blockdev(node)
        parts += backend("throttle-group", id=throttle_group(each.id))
        parts += blockdev(throttle_node(each))
        parts += option("-device", front(each, order[each.id], places.get(each.id)))
    return parts


def format_node(attachment: DiskAttachment, depth: int = 0) -> str:
    """Name of the node of the layer at `depth`; 0 is the one that is written to."""
    return f"d-{_name(attachment, depth)}"


def filter_node(disk: str) -> str:
    """Name of the node that stands between a disk's layers and its device."""
    return f"th-{disk}"


def throttle_group(disk: str) -> str:
    return f"tg-{disk}"


def device_id(disk: str) -> str:
    return f"disk-{disk}"


def chain_nodes(attachment: DiskAttachment, io_uring: bool) -> list[dict[str, Any]]:
    """The nodes of a disk's layers as QEMU takes them (QAPI BlockdevOptions), from the lowest up."""
    nodes: list[dict[str, Any]] = []
    below: str | None = None
    for depth in range(len(attachment.layers) - 1, -1, -1):
        layer, name = attachment.layers[depth], _name(attachment, depth)
        if below is not None and layer.format != "qcow2":
            raise ValueError(f"{layer.path}: a {layer.format} file has nothing below it")
        nodes += layer_nodes(layer, name, fixed=depth > 0, discard=attachment.discard, io_uring=io_uring)
        if layer.format == "qcow2":
            nodes[-1]["backing"] = below
        below = f"d-{name}"
    return nodes


def layer_nodes(
    layer: Layer, name: str, *, fixed: bool, discard: bool, io_uring: bool
) -> list[dict[str, Any]]:
    """The two nodes of one layer, with nothing below them. `fixed`: it is only read."""
    discards = discard and not fixed
    file = {
        "driver": "file",
        "node-name": f"f-{name}",
        "filename": str(layer.path),
        "aio": "io_uring" if io_uring else "threads",
        "read-only": fixed,
        "cache": _CACHE,
        **({"discard": "unmap"} if discards else {}),
    }
    format_ = {
        "driver": layer.format,
        "node-name": f"d-{name}",
        "file": f"f-{name}",
        "read-only": fixed,
        "cache": _CACHE,
        **({"discard": "unmap", "detect-zeroes": "unmap"} if discards else {}),
    }
    return [file, format_]


def throttle_node(attachment: DiskAttachment) -> dict[str, Any]:
    return {
        "driver": "throttle",
        "node-name": filter_node(attachment.id),
        "throttle-group": throttle_group(attachment.id),
        "file": format_node(attachment),
    }


def front(attachment: DiskAttachment, number: int, place: int | None) -> dict[str, Any]:
    """What the guest sees: the device, as `device_add` takes it.

    `number` is the disk's own in this VM; `place` that of its PCIe port, None on the SCSI bus.
    """
    shared = {
        "id": device_id(attachment.id),
        "drive": filter_node(attachment.id),
        "serial": attachment.id,
        "bootindex": _FIRST_BOOT + number,
    }
    if place is None:
        at = {"channel": 0, "scsi-id": number % _TARGETS, "lun": number // _TARGETS}
        return {"driver": "scsi-hd", "bus": f"{SCSI_CONTROLLER}.0", **at, **shared}
    bus = DISK_PORTS.port(place)
    if attachment.bus is DiskBus.NVME:
        return {"driver": "nvme", "bus": bus, **shared}
    return {"driver": "virtio-blk-pci", "bus": bus, "iothread": IO_THREAD, **shared}


def _name(attachment: DiskAttachment, depth: int) -> str:
    return attachment.layers[depth].name or f"{attachment.id}.{depth}"
