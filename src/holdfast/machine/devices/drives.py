"""Disks and CD drives. A disk is `file -> format d -> throttle th -> device`, its chain given whole."""

from typing import Any

from holdfast.machine.devices.quoting import blockdev
from holdfast.spec.attachment import CdAttachment, DiskAttachment, Layer
from holdfast.spec.vm import DiskBus


def _layer(layer: Layer, below: dict[str, Any] | None, writable: bool, discard: bool) -> dict[str, Any]:
    file: dict[str, Any] = {"driver": "file", "filename": str(layer.path), "read-only": not writable}
    node: dict[str, Any] = {"driver": layer.format, "read-only": not writable, "file": file}
    if writable and discard:
        file["discard"] = node["discard"] = "unmap"
        node["detect-zeroes"] = "unmap"
    if layer.format == "qcow2":
        node["backing"] = below
    return node


def disk(index: int, attachment: DiskAttachment) -> list[str]:
    below: dict[str, Any] | None = None
    for layer in reversed(attachment.layers[1:]):
        below = _layer(layer, below, False, False)
    top = _layer(attachment.layers[0], below, True, attachment.discard)
    top["node-name"] = f"d{index}"
    group = f"tg{index}"
    throttle = {"driver": "throttle", "node-name": f"th{index}", "throttle-group": group, "file": f"d{index}"}
    device = {
        DiskBus.VIRTIO: "virtio-blk-pci",
        DiskBus.SCSI: "scsi-hd,bus=scsi0.0",
        DiskBus.NVME: "nvme",
    }[attachment.bus]
    port = "" if attachment.bus is DiskBus.SCSI else f",bus=disk-port{index}"
    root = ["-device", f"pcie-root-port,id=disk-port{index},chassis={100 + index}"] if port else []
    options = (
        f"{device},id={attachment.id},drive=th{index},serial={attachment.id},bootindex={10 + index}{port}"
    )
    return [
        "-object",
        f"throttle-group,id={group}",
        *blockdev(top),
        *blockdev(throttle),
        *root,
        "-device",
        options,
    ]


def cd_drive(index: int, attachment: CdAttachment, windows: bool) -> list[str]:
    """Linux cloud kernels read no AHCI and the Windows installer reads no virtio-scsi."""
    arguments: list[str] = []
    medium = ""
    if attachment.path:
        file = {"driver": "file", "filename": str(attachment.path), "read-only": True}
        arguments = blockdev(
            {"driver": "raw", "node-name": f"cd{index}-medium", "read-only": True, "file": file}
        )
        medium = f",drive=cd{index}-medium"
    boot = "" if attachment.id == "seed" else f",bootindex={1 + index}"
    device = f"ide-cd,bus=ide.{index}" if windows else "scsi-cd,bus=scsi0.0"
    return [*arguments, "-device", f"{device},id=cd-{attachment.id}{boot}{medium}"]
