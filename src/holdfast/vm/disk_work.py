"""Disks added, removed and grown, as procedures, while the VM runs and while it does not.

    add     make the volume ▶ record it, plug it ▶ ask the guest
    remove  ask the guest to let go, forget it   ▶ delete the volume
    grow    resize, record                       ▶ ask the guest

What QEMU is told and what is recorded of it happens in the task of the VM's owner, as one piece; after
a crash the phase finds out what is so already.
"""

import asyncio
from typing import Any

from holdfast.machine.hotplug import UnplugIgnored, UnplugRefused
from holdfast.machine.running import RunningMachine
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.vm import Disk, DiskBus
from holdfast.vm.disk_attachments import open_disk
from holdfast.vm.disk_settling import forget_unnamed
from holdfast.vm.disk_specs import (
    disk_notices,
    disk_of,
    named,
    with_disk,
    with_update,
    without_disk,
)
from holdfast.vm.guest_disks import has_gone, name_of, seen_now, sees_size
from holdfast.vm.guest_sight import patience
from holdfast.vm.lifecycle import Find, RoomsPhase
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import change_both, change_running, change_spec
from holdfast.vm.rooms import Rooms


def _disk(job: Job) -> Disk:
    return Disk.model_validate(job.params["disk"])


class MakeVolume(RoomsPhase):
    title = "make the volume"
    weight = 3.0

    async def do(self, job: Job) -> None:
        owner, disk = await self._owner(job), _disk(job)
        if disk.device is not None:
            return
        await self._rooms.volumes.create(
            owner.record.name,
            disk,
            copy_of=job.params["full_copies"].get(disk.id) if job.params["full_copy"] else None,
            identity=self._rooms.identities.of(owner.record.number),
            operation=job.id,
            progress=job.progress,
        )

    async def undo(self, job: Job) -> None:
        owner = await self._owner(job)
        await owner.request(lambda: forget_unnamed(self._rooms, owner.record, [_disk(job)]))


class PlugDisk(RoomsPhase):
    title = "give the disk to the VM"

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        if "before" not in job.notes:
            job.notes["before"] = [each.name for each in await seen_now(owner) or ()]
        await owner.request(lambda: self._plug(owner, _disk(job)))

    async def _plug(self, owner: VmOwner, disk: Disk) -> None:
        machine, record = owner.machine, owner.record
        if machine is None:
            await owner.change(lambda row: change_spec(row, with_disk(disk)))
        elif not await machine.disks.has(disk.id):
            place = await free_place(owner, machine, disk)
            await owner.change(lambda row: change_both(row, with_disk(disk)))
            opened = await asyncio.to_thread(open_disk, self._rooms, record.name, disk, record.running_spec)
            try:
                await machine.disks.know(await self._rooms.volumes.secrets(record.name, disk))
                await machine.disks.add(opened.attachment, place, opened.fd)
            finally:
                opened.close()
        await self._rooms.events.emit("vm.disk-added", record.name, {"id": record.id, "disk": disk.id})

    async def undo(self, job: Job) -> None:
        owner = await self._owner(job)
        await owner.request(lambda: self._take_back(owner, _disk(job)))

    async def _take_back(self, owner: VmOwner, disk: Disk) -> None:
        await owner.change(lambda row: change_spec(row, without_disk(disk.id)))
        # One that its guest does not let go of stays with the machine until that ends.
        if owner.machine is not None:
            await owner.machine.disks.remove(disk.id, patience(owner))
        await owner.change(lambda row: change_running(row, without_disk(disk.id)))


class AskGuest(RoomsPhase):
    """Its own phase, so that an answer that does not come keeps nothing from being recorded."""

    title = "look whether the guest sees it"
    weight = 0.5

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        wanted = job.params.get("size")
        if wanted is not None:
            job.notes["guest_sees"] = await sees_size(owner, job.params["disk_id"], wanted)
            return
        name = await name_of(owner, _disk(job).id, set(job.notes["before"]))
        job.notes["guest_sees"] = None if name is None else bool(name)
        job.notes["guest_name"] = name or None


class UnplugDisk(RoomsPhase):
    title = "take the disk out of the VM"
    weight = 2.0

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        seen = await seen_now(owner)
        if "seen" not in job.notes:
            job.notes["seen"] = None if seen is None else len(seen)
        await owner.request(lambda: self._unplug(owner, job))
        if job.notes["seen"] is not None and not job.notes.get("waits"):
            gone = await has_gone(owner, job.params["disk_id"], job.notes["seen"])
            job.notes["guest_sees"] = None if gone is None else not gone

    async def _unplug(self, owner: VmOwner, job: Job) -> None:
        disk, machine, record = job.params["disk_id"], owner.machine, owner.record
        told = {"disk": disk}
        if machine is not None and disk_of(record.running_spec, disk):
            try:
                await machine.disks.remove(disk, patience(owner))
            except (UnplugIgnored, UnplugRefused) as error:
                if not job.params["force"] or job.params["keep"]:
                    raise _kept(record.name, disk, error) from error
                job.notes["waits"] = True
                await owner.change(lambda row: change_spec(row, without_disk(disk)), "vm.disk-removed", told)
                return
        await owner.change(lambda row: change_both(row, without_disk(disk)), "vm.disk-removed", told)


class DropVolume(RoomsPhase):
    title = "delete the volume"
    weight = 0.2

    async def do(self, job: Job) -> None:
        owner, disk = await self._owner(job), _disk(job)
        if job.params["keep"]:
            job.notes["kept"] = await self._rooms.volumes.set_aside(owner.record.name, disk, job.id[:8])
        elif not job.notes.get("waits"):
            await owner.request(lambda: forget_unnamed(self._rooms, owner.record, [disk]))


class ResizeDisk(RoomsPhase):
    title = "give the disk more space"

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        await owner.request(lambda: self._resize(owner, job))

    async def _resize(self, owner: VmOwner, job: Job) -> None:
        disk_id, size = job.params["disk_id"], job.params["size"]
        machine, disk = owner.machine, named(owner.record, job.params["disk_id"])
        if disk.size >= size:
            return
        if machine is not None and disk_of(owner.record.running_spec, disk_id):
            await machine.disks.resize(disk_id, disk.bus, size)
        else:
            await self._rooms.volumes.resize(owner.record.name, disk, size, operation=job.id)
        told = {"disk": disk_id, "size": size}
        await owner.change(
            lambda row: change_both(row, with_update(disk_id, size=size)), "vm.disk-grown", told
        )


async def free_place(owner: VmOwner, machine: RunningMachine, disk: Disk) -> int | None:
    """The PCIe port for a disk in the machine that runs, None on SCSI. Raises NoFreePort, TooManyDevices."""
    running = owner.record.running_spec
    others = [
        each.id
        for each in (running.disks if running else ())
        if each.bus is not DiskBus.SCSI and each.id != disk.id
    ]
    return await machine.disks.require_place(disk.id, disk.bus, others)


def _kept(name: str, disk: str, error: UnplugIgnored | UnplugRefused) -> UnplugIgnored | UnplugRefused:
    did = "refused to" if isinstance(error, UnplugRefused) else "did not"
    return type(error)(
        f"the guest of VM {name!r} {did} let go of {disk}: the disk stays in the VM",
        value=disk,
        cure="Try again once the guest runs and no longer uses the disk; or stop the VM and remove it then."
        f" `holdfast disk remove {name} {disk} --force` removes it from the next start on.",
        detail={"plugged": True, "after_next_start": True},
    )


def _added(job: Job) -> dict[str, Any]:
    told = {key: job.notes.get(key) for key in ("guest_sees", "guest_name")}
    return {"vm": job.subject, "disk": job.params["disk"], **told, "notices": disk_notices(_disk(job))}


def _removed(job: Job) -> dict[str, Any]:
    told = {key: job.notes.get(key) for key in ("guest_sees", "kept")}
    return {
        "vm": job.subject,
        "disk_id": job.params["disk_id"],
        **told,
        "waits": bool(job.notes.get("waits")),
    }


def _grown(job: Job) -> dict[str, Any]:
    told = {key: job.params[key] for key in ("disk_id", "size")}
    return {"vm": job.subject, **told, "guest_sees": job.notes.get("guest_sees")}


def procedures(rooms: Rooms, find: Find) -> list[Procedure]:
    asked = AskGuest(rooms, find)
    return [
        Procedure("disk.add", (MakeVolume(rooms, find), PlugDisk(rooms, find), asked), _added),
        Procedure("disk.remove", (UnplugDisk(rooms, find), DropVolume(rooms, find)), _removed),
        Procedure("disk.grow", (ResizeDisk(rooms, find), asked), _grown),
    ]
