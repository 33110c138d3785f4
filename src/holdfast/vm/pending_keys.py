"""Changes of keys that were recorded for a VM: made while it does not run, at the latest before it starts."""

import asyncio
from collections.abc import Mapping

import structlog

from holdfast.host.threads import to_its_end
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import UefiBoot
from holdfast.trust.key_changes import KeyChange
from holdfast.vm.certificates import Standpoint, Subject, look, worked_out
from holdfast.vm.records import VmRecord
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)


def subject_of(rooms: Rooms, record: VmRecord) -> Subject:
    """A VM as it is judged."""
    boot = record.spec.boot
    return Subject(
        name=record.name,
        folder=rooms.state.vm(record.name),
        secure_boot=isinstance(boot, UefiBoot) and boot.secure_boot,
        disks=tuple((disk.id, rooms.volumes.chain(record.name, disk)) for disk in record.spec.disks),
        state=record.state,
    )


async def look_at(rooms: Rooms, record: VmRecord) -> Standpoint:
    """Read a VM's store and disks; of few VMs at once, since each may take hundreds of MiB meanwhile."""
    async with rooms.looking:
        return await to_its_end(look, subject_of(rooms, record))


async def authorities_for(rooms: Rooms, changes: tuple[KeyChange, ...]) -> Mapping[str, bytes]:
    """Only where they are needed: making them takes a program."""
    return await rooms.keys.authorities() if any(each.successors for each in changes) else {}


async def make_pending(rooms: Rooms, record: VmRecord) -> list[str]:
    """Make what is recorded for a VM that does not run; the names of the databases that changed.

    Raises:
        WouldNotBoot, ForeignPlatformKey, KeyChangeFailed, ...: nothing was changed; the record stays.
    """
    folder = rooms.state.vm(record.name)
    at = await look_at(rooms, record)
    changes = await asyncio.to_thread(rooms.keys.pending, folder)
    if not changes:
        return []
    authorities = await authorities_for(rooms, changes)
    databases = await asyncio.to_thread(worked_out, at, changes, authorities)
    if databases and at.store is not None:
        await rooms.keys.make(folder, at.store, databases)
    await asyncio.to_thread(rooms.keys.forget, folder)
    if databases:
        data = {"id": record.id, "databases": list(databases)}
        await rooms.events.emit("vm.certificates-changed", record.name, data)
    return list(databases)


async def before_start(rooms: Rooms, record: VmRecord) -> None:
    """Make what waits for this start. What cannot be made is said, and never keeps a VM from starting."""
    if not rooms.keys.is_pending(rooms.state.vm(record.name)):
        return
    try:
        await make_pending(rooms, record)
    except (HoldfastError, OSError) as error:
        log.warning("recorded certificates were not changed", vm=record.name, error=str(error))
        data = {"id": record.id, "error": str(error)[:500]}
        await rooms.events.emit("vm.certificates-not-changed", record.name, data)
