"""Disks: `file f -> format d -> throttle th -> device`, every node named, the chain given whole.

Nodes are named by the layer that they are of, and the throttle node by the disk, so that a name
says the same thing before and after layers come and go. The throttle node is the place where
filters and new layers are put in and taken out while the guest runs.

    f-disk0-1 -> d-disk0-1 ------> th-disk0 -> device disk-disk0
                 |backing
    f-disk0   -> d-disk0 -> ... (read-only)
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from holdfast.machine.devices.ports import DISK_PORTS, numbers
from holdfast.machine.devices.quoting import backend, blockdev, option
from holdfast.spec.attachment import BlockPlace, DiskAttachment, FilePlace, Layer, OnDiskError, Place
from holdfast.spec.vm import DiskBus, IoLimits

IO_THREAD = "io0"
SCSI_CONTROLLER = "scsi0"
_FIRST_BOOT = 1000  # after every CD drive
_TARGETS = 256
_MOST = 64 * _TARGETS
_SECTOR = 512  # bytes; QEMU's default
_LOCAL = ("file", "block")
_CACHE = {"direct": False, "no-flush": False}


def disks(
    attachments: Sequence[DiskAttachment],
    *,
    io_uring: bool,
    ports: int | None = None,
    queues: int | None = None,
    threaded: bool = True,
) -> list[str]:
    """A machine's disks and their controller.

    Args:
        ports: how many there are for disks; None: as many as these ones get.
        queues: request queues of the SCSI controller; None: one a CPU.
        threaded: requests run in an I/O thread, also those of disks that come later.

    Raises:
        TooManyDevices
    """
    parts = backend("iothread", id=IO_THREAD) if threaded else []
    places = DISK_PORTS.places(each.id for each in attachments if each.bus is not DiskBus.SCSI)
    parts += DISK_PORTS.ports(DISK_PORTS.count(places.values()) if ports is None else ports)
    on_scsi = [each for each in attachments if each.bus is DiskBus.SCSI]
    # One that has no disks yet may get some that wait.
    threads = threaded and on_scsi and not any(_waits(each) for each in on_scsi)
    thread = {"iothread": IO_THREAD} if threads else {}
    parts += scsi_controller(SCSI_CONTROLLER, "0x7", queues, **thread)
    order = disk_numbers(each.id for each in attachments)
    for each in attachments:
        for node in chain_nodes(each, io_uring):
            parts += blockdev(node)
        parts += option("-object", throttle_object(each))
        parts += blockdev(throttle_node(each))
        parts += option("-device", front(each, order[each.id], places.get(each.id), threaded))
    return parts


def scsi_controller(name: str, address: str, queues: int | None, **more: Any) -> list[str]:
    """Its number of queues is a part of the memory saved of a machine: it must not follow that of CPUs."""
    told = {"num_queues": queues} if queues else {}
    at = {"id": name, "bus": "pcie.0", "addr": address}
    return option("-device", {"driver": "virtio-scsi-pci", **at, **told, **more})


def disk_numbers(ids: Iterable[str]) -> dict[str, int]:
    """The number of each disk of a VM, which its boot order and its place on the SCSI bus follow from."""
    return numbers(ids, _MOST)


def descriptor_set(disk: str) -> int:
    """Number of the set of descriptors through which QEMU opens a disk that was opened for it."""
    return 1 + disk_numbers([disk])[disk]


def opened_place(disk: str) -> BlockPlace:
    """A host's block device that was opened for QEMU, which needs no right to it."""
    return BlockPlace(path=Path(f"/dev/fdset/{descriptor_set(disk)}"))


def opened(disk: str, fd: int) -> list[str]:
    return ["-add-fd", f"fd={fd},set={descriptor_set(disk)}"]


def secrets(held: Sequence[tuple[str, int]]) -> list[str]:
    """Secret objects by id, each read from an open descriptor."""
    return [part for name, fd in held for part in backend("secret", id=name, file=f"/dev/fd/{fd}")]


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
            raise ValueError(f"{layer.place}: a {layer.format} file has nothing below it")
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
    cache = _CACHE | {"direct": _past_the_cache(layer.place)}
    protocol = layer.place.protocol()
    local = {"aio": "io_uring" if io_uring else "threads"} if layer.place.kind in _LOCAL else {}
    file = {
        "driver": protocol["driver"],
        "node-name": f"f-{name}",
        **protocol,
        **local,
        "read-only": fixed,
        "cache": cache,
        **({"discard": "unmap"} if discards else {}),
    }
    format_ = {
        "driver": layer.format,
        "node-name": f"d-{name}",
        "file": f"f-{name}",
        "read-only": fixed,
        "cache": cache,
        **({"discard": "unmap", "detect-zeroes": "unmap"} if discards else {}),
    }
    return [file, format_]


def throttle_object(attachment: DiskAttachment) -> dict[str, Any]:
    """The group that limits one disk, as `object-add` takes it."""
    limits = attachment.limits
    told = {"limits": throttle_limits(limits)} if limits != IoLimits() else {}
    return {"qom-type": "throttle-group", "id": throttle_group(attachment.id), **told}


def throttle_limits(limits: IoLimits) -> dict[str, int]:
    """Every limit as QEMU takes it (qapi/block-core.json, ThrottleLimits); 0 is none."""
    told: dict[str, int] = {}
    for what, ours in (("iops", "iops"), ("bps", "bandwidth")):
        burst = getattr(limits, f"burst_{ours}")
        for which, part in (("total", ""), ("read", "_read"), ("write", "_write")):
            rate = getattr(limits, f"{ours}{part}") or 0
            told[f"{what}-{which}"] = rate
            told[f"{what}-{which}-max"] = burst or 0 if rate else 0
            told[f"{what}-{which}-max-length"] = limits.burst_seconds if rate and burst else 1
    return told


def _past_the_cache(place: Place) -> bool:
    return isinstance(place, BlockPlace) or (isinstance(place, FilePlace) and place.direct)


def throttle_node(attachment: DiskAttachment) -> dict[str, Any]:
    return {
        "driver": "throttle",
        "node-name": filter_node(attachment.id),
        "throttle-group": throttle_group(attachment.id),
        "file": format_node(attachment),
        # Every node on the way must let discards pass (QEMU, block/io.c, bdrv_co_pdiscard).
        **({"discard": "unmap"} if attachment.discard else {}),
    }


def front(
    attachment: DiskAttachment, number: int, place: int | None, threaded: bool = True
) -> dict[str, Any]:
    """What the guest sees: the device, as `device_add` takes it.

    `number` is the disk's own in this VM; `place` that of its PCIe port, None on the SCSI bus;
    `threaded` whether the machine has an I/O thread.
    """
    shared: dict[str, Any] = {
        "id": device_id(attachment.id),
        "drive": filter_node(attachment.id),
        "serial": attachment.id,
        "bootindex": _FIRST_BOOT + number,
    }
    if _waits(attachment) and attachment.bus is not DiskBus.NVME:
        shared |= {"rerror": "stop", "werror": "stop"}
    if attachment.sector != _SECTOR:
        shared |= {"logical_block_size": attachment.sector, "physical_block_size": attachment.sector}
    if place is None:
        at = {"channel": 0, "scsi-id": number % _TARGETS, "lun": number // _TARGETS}
        return {"driver": "scsi-hd", "bus": f"{SCSI_CONTROLLER}.0", **at, **shared}
    bus = DISK_PORTS.port(place)
    if attachment.bus is DiskBus.NVME:
        return {"driver": "nvme", "bus": bus, "ioeventfd": True, **shared}
    queues = {"num-queues": attachment.queues} if attachment.queues else {}
    thread = {"iothread": IO_THREAD} if threaded and not _waits(attachment) else {}
    return {"driver": "virtio-blk-pci", "bus": bus, **thread, **queues, **shared}


def _waits(attachment: DiskAttachment) -> bool:
    """Whether QEMU stops and tries again, which loses interrupts where an I/O thread serves the disk."""
    return attachment.on_error is OnDiskError.STOP


def _name(attachment: DiskAttachment, depth: int) -> str:
    return attachment.layers[depth].name or f"{attachment.id}.{depth}"
