"""A disk of a specification as a machine gets it: its layers, or a block device of the host, opened."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.host.block_devices import open_exclusively, sector_of
from holdfast.machine.devices.disks import opened_place
from holdfast.spec.attachment import DiskAttachment, Layer, OnDiskError
from holdfast.spec.vm import Disk, VmSpec
from holdfast.vm.rooms import Rooms


@dataclass(frozen=True)
class OpenedDisk:
    attachment: DiskAttachment
    fd: int | None = None
    """Of the host's device that carries it, of which QEMU gets a copy; whoever opened it closes it."""

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)


def open_disk(rooms: Rooms, vm_name: str, disk: Disk, machine: VmSpec | None = None) -> OpenedDisk:
    """For the machine that was, or is to be, started from `machine`.

    Raises NotABlockDevice, BlockDeviceInUse: the host's device cannot be had.
    """
    if disk.device is None:
        return OpenedDisk(_attachment(disk, rooms.volumes.chain(vm_name, disk), machine))
    layer = Layer(place=opened_place(disk.id), format="raw", name=disk.id)
    attachment = _attachment(disk, (layer,), machine)
    fd = open_exclusively(disk.device)
    return OpenedDisk(attachment.model_copy(update={"sector": sector_of(fd)}), fd)


def descriptors_of(disks: Iterable[OpenedDisk]) -> list[int]:
    return [disk.fd for disk in disks if disk.fd is not None]


def _attachment(disk: Disk, layers: tuple[Layer, ...], machine: VmSpec | None) -> DiskAttachment:
    on_error = OnDiskError.REPORT if disk.pool is None else OnDiskError.STOP
    layout = machine.layout if machine else None
    return DiskAttachment(
        id=disk.id,
        bus=disk.bus,
        layers=layers,
        limits=disk.limits,
        on_error=on_error,
        queues=layout.queues if layout else None,
    )
