"""Making a VM, cloning one, deleting one: procedures whose every phase can be undone.

The record was made together with the operation, so the name is taken from the first moment; the
folder is the VM's whole: taking it back is one rename into the scratch folder.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from holdfast.host.files import own, remove_tree, write_atomic
from holdfast.host.processes import Identity
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.disk_requests import own_layers
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import Disk, UefiBoot, VmState
from holdfast.storage.seed_disc import write_seed_disc
from holdfast.trust.firmware import choose_firmware
from holdfast.trust.key_stores import carry_pending
from holdfast.vm.cloud_init import seed_files
from holdfast.vm.disk_settling import in_pools, specs_of
from holdfast.vm.lifecycle import Find, RoomsPhase, StartMachine
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import VmNotFound
from holdfast.vm.rooms import Rooms

Forget = Callable[[str], Awaitable[None]]
"""Told the id of a VM that is no more."""

_LOGS = ("console.log",)
"""Written by QEMU itself, so they are its user's; the folder is not."""


class _Making(RoomsPhase):
    """A phase that makes a part of the VM's folder; its undo is that of `PrepareFolder`: all of it goes."""

    def _identity(self, owner: VmOwner) -> Identity | None:
        return self._rooms.identities.of(owner.record.number)


class PrepareFolder(_Making):
    title = "make the VM's folder"
    weight = 0.1

    def __init__(self, rooms: Rooms, find: Find, forget: Forget) -> None:
        super().__init__(rooms, find)
        self._forget = forget

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        folder = self._rooms.state.vm(owner.record.name)
        identity = self._identity(owner)

        def make() -> None:
            remove_tree(folder)  # of an attempt that a crash interrupted
            for each in (folder, folder / "firmware"):
                each.mkdir()
                each.chmod(0o711)  # the VM's users pass through; the daemon's umask is stricter
            for name in _LOGS:
                write_atomic(folder / name, b"")
                if identity:
                    own(folder / name, identity.uid, identity.gid)

        await asyncio.to_thread(make)

    async def undo(self, job: Job) -> None:
        await _remove_again(self._rooms, job, self._find, self._forget)


class MakeParts(_Making):
    """Disks, variable store and vTPM, all at once: they do not depend on one another."""

    title = "make disks and firmware state"
    weight = 2.0

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        record, identity = owner.record, self._identity(owner)
        folder = self._rooms.state.vm(record.name)
        async with asyncio.TaskGroup() as group:
            for disk in record.spec.disks:
                group.create_task(self._make_disk(job, owner, disk))
            boot = record.spec.boot
            if isinstance(boot, UefiBoot) and not self._has_firmware_state(job):
                group.create_task(
                    self._rooms.variables.make(
                        choose_firmware(boot.secure_boot).template,
                        folder / "firmware" / "variables.fd",
                        boot.secure_boot,
                        identity,
                    )
                )
                if boot.tpm:
                    group.create_task(self._rooms.vtpm.manufacture(record.id, folder, identity))

    def _has_firmware_state(self, job: Job) -> bool:
        """An earlier phase has put it."""
        return False

    async def _make_disk(self, job: Job, owner: VmOwner, disk: Disk) -> None:
        full = job.params["full_copies"].get(disk.id)
        await self._rooms.volumes.create(
            owner.record.name,
            disk,
            copy_of=full,
            identity=self._identity(owner),
            operation=job.id,
            progress=job.progress,
        )


class CopyParts(_Making):
    """Of a clone: disks and firmware state, with a TPM identity of its own unless told to keep it."""

    title = "copy disks and firmware state"
    weight = 5.0

    async def do(self, job: Job) -> None:
        owner, source = await self._owner(job), await self._find(job.params["source"])
        record, identity = owner.record, self._identity(owner)
        folder, old = self._rooms.state.vm(record.name), self._rooms.state.vm(source.record.name)
        for before, disk in zip(source.record.spec.disks, record.spec.disks, strict=True):
            await self._rooms.volumes.clone(
                source.record.name,
                before,
                record.name,
                disk,
                identity=identity,
                operation=job.id,
                progress=job.progress,
            )
        boot = record.spec.boot
        if isinstance(boot, UefiBoot):
            keep = boot.tpm_identity
            state = await self._rooms.firmware.take(source.record.id, old, has_tpm=keep is not None)
            await self._rooms.firmware.put(state, record.id, folder, identity)
            await asyncio.to_thread(carry_pending, old / "firmware", folder / "firmware")
            if boot.tpm and keep is None:
                await self._rooms.vtpm.manufacture(record.id, folder, identity)


class MakeSeed(_Making):
    title = "make the cloud-init seed"
    weight = 0.2

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        record = owner.record
        if record.spec.cloud_init is None:
            return
        files = seed_files(record.spec.cloud_init, record.name, record.id, record.spec.nics)
        path = self._rooms.state.vm(record.name) / "seed.iso"
        await write_seed_disc(self._rooms.processes, path, files, f"operation:{job.id}")
        identity = self._identity(owner)
        if identity:
            own(path, identity.uid, identity.gid)


class StartIfWanted(StartMachine):
    async def do(self, job: Job) -> None:
        if job.params["start"]:
            await super().do(job)


class EndMachine(_Making):
    title = "end the machine"

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        if job.params["force"]:
            await owner.kill()


class RemoveFolder(_Making):
    title = "remove disks, firmware state and record"

    def __init__(self, rooms: Rooms, find: Find, forget: Forget) -> None:
        super().__init__(rooms, find)
        self._forget = forget

    async def do(self, job: Job) -> None:
        await _remove_again(self._rooms, job, self._find, self._forget)


async def _remove_again(rooms: Rooms, job: Job, find: Find, forget: Forget) -> None:
    """Where a crash came after the record went, only the folder that was set aside is left."""
    try:
        owner = await find(job.params["vm"])
    except VmNotFound:
        await asyncio.to_thread(remove_tree, _set_aside_folder(rooms, job.params["vm"]))
        return
    await remove_vm(rooms, owner, forget)


def _set_aside_folder(rooms: Rooms, vm_id: str) -> Path:
    return rooms.state.scratch / f"deleted-{vm_id}"


async def remove_vm(rooms: Rooms, owner: VmOwner, forget: Forget) -> None:
    """Volumes in pools; the folder, as one rename, and all in it; then the record. Safe to run again.

    What the folder held makes room for the record of its end, where the disk is full.
    """
    record = owner.record
    if record.state not in (VmState.OFF, VmState.FAILED, VmState.SAVED):
        await owner.kill()
    for disk in in_pools(await specs_of(rooms, record)):
        found = await rooms.volumes.layers_found(record.name, disk.pool)
        # With its own, whether found or not, goes what is only a draft.
        await rooms.volumes.delete_layers(record.name, disk, found.union(own_layers(disk)))
    folder, doomed = rooms.state.vm(record.name), _set_aside_folder(rooms, record.id)

    def set_aside() -> None:
        if folder.exists() and not doomed.exists():
            folder.rename(doomed)

    await asyncio.to_thread(set_aside)
    await rooms.vtpm.stop(record.id)
    for nic in record.spec.nics:
        with contextlib.suppress(HoldfastError):
            await rooms.ports.forget(nic)
    await asyncio.to_thread(remove_tree, doomed)
    await rooms.records.remove(record.id)
    await forget(record.id)


def procedures(rooms: Rooms, find: Find, forget: Forget) -> list[Procedure]:
    def named(job: Job) -> dict[str, str]:
        return {"vm": job.subject}

    prepare, seed = PrepareFolder(rooms, find, forget), MakeSeed(rooms, find)
    return [
        Procedure("vm.create", (prepare, MakeParts(rooms, find), seed, StartIfWanted(find)), named),
        Procedure("vm.clone", (prepare, CopyParts(rooms, find), seed), named),
        Procedure("vm.delete", (EndMachine(rooms, find), RemoveFolder(rooms, find, forget)), named),
    ]
