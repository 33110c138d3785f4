"""Making a checkpoint: disks, firmware state and, where there is any, memory of one instant.

    new layers, empty, beside the chains ─▶ recorded as the tops ─▶ the instant ─▶ checkpoint recorded

An empty layer shows what is below it. So once the new tops are recorded, they are right for a machine that
died, whether or not it was switched to them; a machine that lives is asked. Nothing has to be made durable
while the guest stands still. A VM that does not run is switched by the record alone.

Undone, a checkpoint leaves one layer more at most, which is merged at once.
"""

import asyncio
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.orm import object_session

from holdfast.catalog.tables import VmRow
from holdfast.operations.procedure import Job
from holdfast.spec.checkpoint import CheckpointType, CheckpointWish
from holdfast.spec.errors import Interrupted
from holdfast.spec.vm import UefiBoot, VmState
from holdfast.vm import checkpoint_records, layers
from holdfast.vm.admission import Verb
from holdfast.vm.checkpoint_files import FOLDER, firmware_file, make_folder, memory_file, share, stored_size
from holdfast.vm.checkpoint_of_machine import MachineCheckpoint, Taken, thaw
from holdfast.vm.checkpoint_records import Checkpoint
from holdfast.vm.layer_merging import Merging, change_specs
from holdfast.vm.lifecycle import Find, RoomsPhase
from holdfast.vm.memory_image import MemoryImage
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import own_specs
from holdfast.vm.rooms import Rooms

CREATE = "vm.checkpoint"


class CheckpointInterrupted(Interrupted):
    id = "checkpoint-interrupted"


def wanted(job: Job) -> dict[str, Any] | None:
    """What the checkpoint of this operation is to be; None: it makes none."""
    found: dict[str, Any] | None = job.params.get("new")
    return found


class CheckpointPhase(RoomsPhase):
    """A phase that works on the checkpoints of one VM."""

    def __init__(self, rooms: Rooms, find: Find) -> None:
        super().__init__(rooms, find)
        self._merging = Merging(rooms)

    def _folder(self, owner: VmOwner, name: str) -> Path:
        return self._rooms.state.vm(owner.record.name) / FOLDER / name

    async def _stored(self, job: Job) -> bool:
        """Whether the checkpoint is whole and recorded."""
        new, tree = wanted(job), await self._rooms.checkpoints.tree(job.params["vm"])
        return new is not None and any(each.id == new["id"] for each in tree.checkpoints)


class PrepareLayers(CheckpointPhase):
    title = "make new layers"
    weight = 0.2

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        if wanted(job) is not None and not await self._stored(job):
            await owner.request(lambda: self._prepare(job, owner))

    async def _prepare(self, job: Job, owner: VmOwner) -> None:
        if "intent" in job.notes:
            return
        owner.admits(Verb.CHECKPOINT, job.id)
        new = wanted(job) or {}
        record, tree = owner.record, await self._rooms.checkpoints.tree(owner.record.id)
        tree.require_free(new["name"])
        await self._merging.tidy(owner)
        specs = [*own_specs(owner.record), *tree.specs()]
        named = layers.named(specs)
        disks = {disk.id: disk for spec in own_specs(owner.record) for disk in spec.disks}
        tops = {each: layers.next_layer(each, named[each]) for each in disks}
        job.notes["tops"] = tops
        folder = self._folder(owner, new["name"])
        await asyncio.to_thread(make_folder, folder)
        for disk in disks.values():
            identity = self._rooms.identities.of(record.number)
            await self._rooms.volumes.create_overlay(
                record.name, disk, tops[disk.id], identity=identity, operation=job.id
            )

    async def undo(self, job: Job) -> None:
        owner = await self._owner(job)
        if wanted(job) is not None and not await self._stored(job):
            await owner.request(lambda: self._merging.tidy(owner))


class TakeCheckpoint(CheckpointPhase):
    title = "take the checkpoint"
    weight = 5.0

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        if wanted(job) is None or "taken" in job.notes or await self._stored(job):
            return
        if "intent" in job.notes:
            raise CheckpointInterrupted(
                f"the daemon ended while a checkpoint of VM {owner.record.name!r} was being made",
                value=owner.record.name,
                cure="Make it again; the VM was left as it was.",
            )
        await owner.request(lambda: self._take(job, owner))

    async def _take(self, job: Job, owner: VmOwner) -> None:
        owner.admits(Verb.CHECKPOINT, job.id)
        if owner.machine is None:
            await self._take_at_rest(job, owner)
        else:
            folder = self._new_folder(job, owner)
            machine = MachineCheckpoint(self._rooms, owner, job, owner.machine, folder, _wish(job))
            await _note(job, await machine.take(), folder)

    def _new_folder(self, job: Job, owner: VmOwner) -> Path:
        return self._folder(owner, (wanted(job) or {})["name"])

    async def _take_at_rest(self, job: Job, owner: VmOwner) -> None:
        record, folder = owner.record, self._new_folder(job, owner)
        vm, saved = self._rooms.state.vm(record.name), record.state is VmState.SAVED
        boot = record.spec.boot
        if isinstance(boot, UefiBoot):
            state = await self._rooms.firmware.take(record.id, vm, has_tpm=boot.tpm)
            await self._rooms.firmware.keep(state, firmware_file(folder))
        if saved:
            # Nobody writes to it any more: it is read once, and then let go of.
            await asyncio.to_thread(share, MemoryImage(vm).whole, memory_file(folder))
        standard = saved or _wish(job) is CheckpointWish.STANDARD
        kind = CheckpointType.STANDARD if standard else CheckpointType.PRODUCTION
        await _note(job, Taken(kind, memory=saved), folder)

    async def undo(self, job: Job) -> None:
        owner = await self._owner(job)
        if wanted(job) is None or await self._stored(job):
            return
        tops = job.notes.get("tops", {})
        await owner.request(lambda: self._take_back(job, owner, tops))
        await self._merging.all_that_can(owner, job)

    async def _take_back(self, job: Job, owner: VmOwner, tops: dict[str, str]) -> None:
        machine = owner.machine
        if machine is not None and "intent" in job.notes:
            await machine.memory.cancel()
            if job.notes["intent"]["freezes"] and owner.guest:
                await thaw(owner)
            status = await machine.status()
            if job.notes["intent"]["runs"] and status in ("paused", "postmigrate"):
                await machine.cont()
            elif status == "postmigrate":
                await machine.instant.be_paused()
            connected = await machine.layers.chains()
            kept = {disk: top for disk, top in tops.items() if top not in connected.get(disk, ())}
            await owner.change(
                lambda row: change_specs(row, lambda spec: layers.without_tops(spec, kept), checkpoints=False)
            )


class RecordCheckpoint(CheckpointPhase):
    title = "record the checkpoint"
    weight = 0.1

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        if wanted(job) is not None and not await self._stored(job):
            await owner.request(lambda: self._record(job, owner))

    async def _record(self, job: Job, owner: VmOwner) -> None:
        new, taken, tops = wanted(job) or {}, job.notes["taken"], job.notes["tops"]
        record = owner.record
        checkpoint = Checkpoint(
            id=new["id"],
            name=new["name"],
            parent=None,
            type=CheckpointType(taken["type"]),
            notes=new["notes"],
            created=datetime.fromisoformat(taken["at"]),
            spec=layers.without_tops(record.spec, tops),
            running_spec=None,
            machine_type=record.machine_type,
            acceleration=record.acceleration,
            size=taken["size"],
            stall_seconds=taken["stall_seconds"],
            scheduled=new["scheduled"],
        )
        if taken["memory"]:
            built = layers.without_tops(record.running_spec or record.spec, tops)
            checkpoint = replace(checkpoint, running_spec=built)

        def store(row: VmRow) -> None:
            change_specs(row, lambda spec: layers.with_tops(spec, tops), checkpoints=False)
            session = object_session(row)
            if session is not None:
                checkpoint_records.insert(session, row.id, checkpoint)

        told = {"checkpoint": new["name"], "type": taken["type"], "stall_seconds": taken["stall_seconds"]}
        await owner.change(store, "vm.checkpoint-created", told)

    async def undo(self, job: Job) -> None:
        """Cancelled at its very end. Where more was to follow, the checkpoint is good to have, and stays."""
        owner, new = await self._owner(job), wanted(job)
        if new is None or job.kind != CREATE or not await self._stored(job):
            return

        def forget(row: VmRow) -> None:
            session = object_session(row)
            if session is not None:
                checkpoint_records.remove(session, row.id, frozenset({new["id"]}))

        await owner.request(lambda: owner.change(forget))


def _wish(job: Job) -> CheckpointWish:
    return CheckpointWish((wanted(job) or {})["type"])


async def _note(job: Job, taken: Taken, folder: Path) -> None:
    job.notes["taken"] = {
        "type": taken.type,
        "stall_seconds": None if taken.stall_seconds is None else round(taken.stall_seconds, 6),
        "memory": taken.memory,
        "size": await asyncio.to_thread(stored_size, folder),
        "at": job.params["requested"],
    }
    await job.keep()
