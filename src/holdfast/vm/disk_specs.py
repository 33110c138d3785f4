"""Disks in a VM's specifications: found, put in, taken out, and told of. Changes nothing but rows."""

from collections.abc import Iterable
from typing import Any

from holdfast.spec.disk_requests import DiskView, own_layers
from holdfast.spec.errors import NotFound, Unsupported
from holdfast.spec.vm import Disk, DiskBus, VmSpec
from holdfast.vm.records import Change, VmRecord


class DiskNotFound(NotFound):
    id = "disk-not-found"


class MemoryNotMovable(Unsupported):
    id = "memory-not-movable"


def disk_of(spec: VmSpec | None, disk: str) -> Disk | None:
    return next((each for each in spec.disks if each.id == disk), None) if spec else None


def named(record: VmRecord, disk: str) -> Disk:
    """As the machine that runs has it, else as the next start makes it. Raises DiskNotFound."""
    found = disk_of(record.running_spec, disk) or disk_of(record.spec, disk)
    if found is None:
        raise DiskNotFound(
            f"VM {record.name!r} has no disk {disk[:32]!r}",
            value=disk[:32],
            cure=f"See `holdfast disk list {record.name}`.",
        )
    return found


def free_id(specs: Iterable[VmSpec]) -> str:
    """The lowest that none of the specifications has; so no volume of another disk has its name."""
    taken = {disk.id for spec in specs for disk in spec.disks}
    return next(f"disk{number}" for number in range(len(taken) + 1) if f"disk{number}" not in taken)


def with_disk(disk: Disk) -> Change:
    """Put in at the end, or in place of the one with the same id."""

    def change(spec: VmSpec) -> VmSpec:
        kept = tuple(disk if each.id == disk.id else each for each in spec.disks)
        there = disk_of(spec, disk.id) is not None
        return spec.model_copy(update={"disks": kept if there else (*kept, disk)})

    return change


def without_disk(disk: str) -> Change:
    def change(spec: VmSpec) -> VmSpec:
        return spec.model_copy(update={"disks": tuple(each for each in spec.disks if each.id != disk)})

    return change


def with_update(disk: str, **update: Any) -> Change:
    """New values of a disk's fields, where the specification has the disk."""

    def change(spec: VmSpec) -> VmSpec:
        disks = tuple(each.model_copy(update=update) if each.id == disk else each for each in spec.disks)
        return spec.model_copy(update={"disks": disks})

    return change


def require_movable_memory(record: VmRecord) -> None:
    """Pass where the memory of what runs can be written out: to be saved, migrated, kept in a checkpoint.

    Raises:
        MemoryNotMovable: a device has state that QEMU cannot carry over (its `nvme` is unmigratable).
    """
    spec = record.running_spec or record.spec
    if spec.usb:
        raise MemoryNotMovable(
            f"the memory of VM {record.name!r} cannot be written out while it has USB devices of the host:"
            f" {', '.join(each.id for each in spec.usb)}",
            value=[each.id for each in spec.usb],
            cure=f"Take them out first: `holdfast usb remove {record.name} {spec.usb[0].id}`.",
        )
    blocking = [disk.id for disk in spec.disks if disk.bus is DiskBus.NVME]
    if blocking:
        raise MemoryNotMovable(
            f"the memory of VM {record.name!r} cannot be written out while it has NVMe disks:"
            f" {', '.join(blocking)}",
            value=blocking,
            cure="Stop it instead, or make a production checkpoint, which needs no memory; or move them to"
            f" another bus for good: `holdfast vm move-disk {record.name} {blocking[0]} --bus virtio`,"
            " at the next start.",
        )


def disk_notices(disk: Disk) -> list[str]:
    """What a user should know of a disk."""
    notices = []
    if disk.bus is DiskBus.NVME:
        notices.append(
            f"{disk.id} is on NVMe, whose state QEMU cannot carry over: while the VM runs it cannot be saved,"
            " migrated or kept in a checkpoint with memory, and the disk does not grow"
        )
    if disk.origin is not None:
        notices.append(
            f"{disk.id} stands on a point of the replica {disk.origin.replica!r}; `holdfast replica settle`"
            " lets it stand on its own"
        )
    if disk.device is not None:
        notices.append(
            f"{disk.id} is the host's device {disk.device}: it cannot be moved, cloned or kept in checkpoints"
        )
    return notices


def view(record: VmRecord, disk: str, stored: int, *, runs: bool) -> DiskView:
    """`runs`: a machine is there, so that `running_spec` holds. Raises DiskNotFound."""
    now = disk_of(record.running_spec, disk) if runs else None
    then = disk_of(record.spec, disk)
    shown = now or then or named(record, disk)
    return DiskView(
        id=shown.id,
        bus=shown.bus,
        size=shown.size,
        stored=stored,
        pool=shown.pool,
        image=shown.image,
        device=shown.device,
        layers=own_layers(shown),
        limits=shown.limits,
        plugged=now is not None,
        after_next_start=then is not None,
        pending=_pending(now, then),
        notices=(*disk_notices(shown), *_waiting(now, then, runs)),
    )


def _pending(now: Disk | None, then: Disk | None) -> dict[str, Any]:
    if now is None or then is None:
        return {}
    before, after = now.model_dump(mode="json"), then.model_dump(mode="json")
    return {key: after[key] for key in after if before[key] != after[key]}


def _waiting(now: Disk | None, then: Disk | None, runs: bool) -> list[str]:
    if now is not None and then is None:
        return [f"{now.id} is removed as soon as the guest lets go of it, at its next stop at the latest"]
    if now is None and then is not None and runs:
        return [f"{then.id} comes with the next start"]
    if now is not None and then is not None and now.bus is not then.bus:
        return [
            f"{now.id} is on {then.bus} after the next start: the guest needs a driver for it and sees the"
            " disk under another name"
        ]
    return []
