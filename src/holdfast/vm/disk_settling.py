"""The disks that QEMU has and those that are recorded of it, brought together.

After a crash of the daemon, and when a guest lets go of a disk later than it was waited for. A disk
is recorded before it is plugged and forgotten after it is gone, so QEMU never has more than the record
names; what it has less is forgotten here. The volumes of a disk that no specification names any more
go with it.
"""

from collections.abc import Iterable

import structlog

from holdfast.machine.running import RunningMachine
from holdfast.spec.disk_requests import own_layers
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import Disk, VmSpec
from holdfast.vm.disk_specs import disk_of, without_disk
from holdfast.vm.records import VmRecord, change_running, own_specs
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)


async def settle_disks(rooms: Rooms, record: VmRecord, machine: RunningMachine) -> VmRecord:
    """Forget the disks that a running machine no longer has; returns the record as it then is."""
    running = record.running_spec
    gone = [disk for disk in running.disks if not await machine.disks.has(disk.id)] if running else []
    if not gone:
        return record
    for disk in gone:
        await machine.disks.close(disk.id)
        record = await rooms.records.change(
            record.id,
            lambda row, disk=disk: change_running(row, without_disk(disk.id)),  # type: ignore[misc]
            "vm.disk-unplugged",
            {"disk": disk.id},
        )
    await forget_unnamed(rooms, record, gone)
    return record


async def settle_limits(record: VmRecord, machine: RunningMachine) -> None:
    """A daemon that ended while it changed limits left those in QEMU that are not recorded."""
    for disk in record.running_spec.disks if record.running_spec else ():
        await machine.disks.limit(disk.id, disk.limits)


async def settle_machine(rooms: Rooms, record: VmRecord, machine: RunningMachine) -> VmRecord:
    """Both, for a machine that was found again; what cannot be asked now is said in the log."""
    try:
        record = await settle_disks(rooms, record, machine)
        await settle_limits(record, machine)
    except HoldfastError as error:
        log.warning("the disks of a VM could not be looked at", vm=record.name, error=error.message)
    return record


async def forget_unnamed(rooms: Rooms, record: VmRecord, disks: list[Disk]) -> None:
    """Delete the volumes of disks that no specification of the VM has any more."""
    for disk in disks:
        if not any(disk_of(spec, disk.id) for spec in await specs_of(rooms, record)):
            try:
                await rooms.volumes.delete(record.name, disk)
            except (HoldfastError, OSError) as error:
                names = own_layers(disk)
                log.warning("volumes could not be deleted", vm=record.name, volumes=names, error=str(error))


def in_pools(specs: Iterable[VmSpec]) -> list[Disk]:
    """One disk for each pool that specifications of a VM name, beside its own folder."""
    return list({disk.pool: disk for spec in specs for disk in spec.disks if disk.pool is not None}.values())


async def specs_of(rooms: Rooms, record: VmRecord) -> list[VmSpec]:
    """Every specification that names volumes of a VM."""
    kept = (await rooms.checkpoints.tree(record.id)).specs()
    return [*own_specs(record), *kept]
