"""Making a checkpoint: disks, firmware state and, where there is any, memory of one instant.

    new layers, empty, beside the chains ─▶ recorded as the tops ─▶ the instant ─▶ checkpoint recorded

An empty layer shows what is below it. So once the new tops are recorded, they are right for a machine that
died, whether or not it was switched to them; a machine that lives is asked. Nothing has to be made durable
while the guest stands still. A VM that does not run is switched by the record alone.

Undone, a checkpoint leaves one layer more at most, which is merged at once.
"""

import asyncio
import contextlib
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import object_session

from holdfast.catalog.tables import VmRow
from holdfast.host.files import copy_sparse, own, remove_tree, sync_folder, write_atomic
from holdfast.host.space import require_space
from holdfast.machine.instant import Stall
from holdfast.machine.running import RunningMachine
from holdfast.operations.procedure import Job
from holdfast.qmp.agent import GuestAgent
from holdfast.spec.checkpoint import CheckpointType, CheckpointWish
from holdfast.spec.errors import Failed, HoldfastError, Interrupted, Unsupported
from holdfast.spec.units import MIB
from holdfast.spec.vm import DiskBus, UefiBoot, VmState
from holdfast.trust.firmware_state import FirmwareCopy, FirmwareState, copy_files
from holdfast.vm import checkpoint_records, layers
from holdfast.vm.admission import Verb
from holdfast.vm.checkpoint_records import Checkpoint
from holdfast.vm.layer_merging import FOLDER, Merging, change_specs, firmware_file, memory_file, own_specs
from holdfast.vm.lifecycle import Find
from holdfast.vm.memory_image import MemoryImage
from holdfast.vm.owner import VmOwner
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)

MEMORY_OVERHEAD = 64 * MIB
"""Beside the guest's memory: devices, the TPM, page tables of the file."""

_FREEZE_SECONDS = 20.0
_THAW_SECONDS = 10.0
_THAWS = 3
_NOT_FROZEN = "Install qemu-guest-agent in the guest and let it run, or make a standard checkpoint."


class GuestNotFrozen(Failed):
    id = "guest-not-frozen"


class MemoryNotMovable(Unsupported):
    id = "memory-not-movable"


class CheckpointInterrupted(Interrupted):
    id = "checkpoint-interrupted"


def wanted(job: Job) -> dict[str, Any] | None:
    """What the checkpoint of this operation is to be; None: it makes none."""
    found: dict[str, Any] | None = job.params.get("new")
    return found


def require_movable(owner: VmOwner) -> None:
    """Pass where the memory of the running machine can be written. Raises MemoryNotMovable."""
    spec = owner.record.running_spec or owner.record.spec
    for disk in spec.disks:
        if disk.bus is DiskBus.NVME:
            raise MemoryNotMovable(
                f"the memory of VM {owner.record.name!r} cannot be saved: {disk.id} is on the NVMe bus, and"
                " QEMU cannot carry the state of its NVMe controllers",
                value=disk.id,
                cure="Make a production checkpoint, or stop the VM first.",
            )


class CheckpointPhase:
    """A phase that works on the checkpoints of one VM; `params["vm"]` is its id."""

    title = ""
    weight = 1.0

    def __init__(self, rooms: Rooms, find: Find) -> None:
        self._rooms = rooms
        self._find = find
        self._merging = Merging(rooms)

    async def _owner(self, job: Job) -> VmOwner:
        return await self._find(job.params["vm"])

    def _folder(self, owner: VmOwner, name: str) -> Path:
        return self._rooms.state.vm(owner.record.name) / FOLDER / name

    async def _stored(self, job: Job) -> bool:
        """Whether the checkpoint is whole and recorded."""
        new, tree = wanted(job), await self._rooms.checkpoints.tree(job.params["vm"])
        return new is not None and any(each.id == new["id"] for each in tree.checkpoints)

    async def undo(self, job: Job) -> None:
        """Nothing by itself."""


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
        specs = [*own_specs(owner), *tree.specs()]
        named = layers.named(specs)
        disks = {disk.id: disk for spec in own_specs(owner) for disk in spec.disks}
        tops = {each: layers.next_layer(each, named[each]) for each in disks}
        job.notes["tops"] = tops
        folder = self._folder(owner, new["name"])
        await asyncio.to_thread(_make_folder, folder)
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
            await _Living(self._rooms, owner, job, owner.machine, self._new_folder(job, owner)).take()

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
        kind = CheckpointType.STANDARD if saved or _wish(job) is CheckpointWish.STANDARD else None
        await _taken(job, kind or CheckpointType.PRODUCTION, None, saved, folder)

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
            if job.notes["intent"]["runs"] and await machine.status() in ("paused", "postmigrate"):
                await machine.cont()
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


CREATE = "vm.checkpoint"


class _Living:
    """The checkpoint of a machine. Runs in the owner's task."""

    def __init__(self, rooms: Rooms, owner: VmOwner, job: Job, machine: RunningMachine, folder: Path) -> None:
        self._rooms = rooms
        self._owner = owner
        self._job = job
        self._machine = machine
        self._folder = folder
        self._vm = rooms.state.vm(owner.record.name)
        self._spec = owner.record.running_spec or owner.record.spec
        self._runs = owner.record.state is VmState.RUNNING
        self._copied: FirmwareCopy | None = None

    async def take(self) -> None:
        wish, tops = _wish(self._job), self._job.notes["tops"]
        freezes = wish is not CheckpointWish.STANDARD
        switched = {disk.volume: tops[disk.id] for disk in self._spec.disks}
        await self._open(tops)
        self._job.notes["intent"] = {"runs": self._runs, "freezes": freezes}
        await self._job.keep()
        await self._owner.change(
            lambda row: change_specs(row, lambda spec: layers.with_tops(spec, tops), checkpoints=False)
        )

        async def at_instant() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy_firmware())
                group.create_task(self._machine.layers.switch(switched))

        kind, stall = CheckpointType.STANDARD, Stall()
        if freezes:
            frozen = await self._frozen(at_instant)
            kind, stall = (CheckpointType.PRODUCTION, frozen) if frozen else (kind, stall)
        if kind is CheckpointType.STANDARD:
            stall = await self._with_memory(at_instant)
        state = await self._state()
        if state is not None:
            await self._rooms.firmware.keep(state, firmware_file(self._folder))
        memory = kind is CheckpointType.STANDARD
        if memory:
            await asyncio.to_thread(_make_durable, memory_file(self._folder))
        await _taken(self._job, kind, stall.seconds, memory, self._folder)

    async def _open(self, tops: dict[str, str]) -> None:
        """The new layers beside the chains; what the old ones hold is written out ahead of the instant."""
        name, paths = self._owner.record.name, []
        for disk in self._spec.disks:
            above = disk.model_copy(update={"volume": tops[disk.id], "below": layers.own_layers(disk)})
            chain = self._rooms.volumes.chain(name, above)
            await self._machine.layers.drop(chain[0].name)
            await self._machine.layers.add(chain[0])
            paths.append(chain[1].path)
        await asyncio.gather(*(asyncio.to_thread(_write_out, path) for path in paths))

    async def _frozen(self, at_instant: Any) -> Stall | None:
        """None: the guest's file systems could not be brought to rest, and memory is the way."""
        try:
            agent = await self._agent()
            try:
                await self._freeze(agent)
                return await self._machine.instant.of_disks(at_instant, runs=self._runs)
            finally:
                await asyncio.shield(thaw(self._owner))
        except GuestNotFrozen as error:
            if _wish(self._job) is CheckpointWish.PRODUCTION_ONLY:
                raise
            log.info("a checkpoint falls back to memory", vm=self._owner.record.name, error=error.message)
            require_movable(self._owner)
            return None

    async def _agent(self) -> GuestAgent:
        if not self._runs or self._owner.guest is None or not self._owner.guest.connected:
            name = self._owner.record.name
            raise GuestNotFrozen(
                f"the guest agent of VM {name!r} does not answer: its file systems cannot be brought to rest",
                value=name,
                cure=_NOT_FROZEN,
            )
        return await self._owner.guest.agent()

    async def _freeze(self, agent: GuestAgent) -> None:
        try:
            await agent.freeze(_FREEZE_SECONDS)
        except HoldfastError as error:
            name = self._owner.record.name
            raise GuestNotFrozen(
                f"the guest of VM {name!r} could not bring its file systems to rest: {error.message}",
                value=name,
                cure=_NOT_FROZEN,
            ) from error

    async def _with_memory(self, at_instant: Any) -> Stall:
        path = memory_file(self._folder)
        await asyncio.to_thread(require_space, self._folder, self._spec.memory + MEMORY_OVERHEAD)
        identity = self._rooms.identities.of(self._owner.record.number)

        def make() -> None:
            path.unlink(missing_ok=True)
            write_atomic(path, b"")
            if identity:
                own(path, identity.uid, identity.gid)

        await asyncio.to_thread(make)
        return await self._machine.instant.with_memory(path, at_instant, self._job.progress, runs=self._runs)

    async def _copy_firmware(self) -> None:
        boot = self._spec.boot
        if isinstance(boot, UefiBoot):
            self._copied = await asyncio.to_thread(copy_files, self._vm, has_tpm=boot.tpm)

    async def _state(self) -> FirmwareState | None:
        if self._copied is None:
            return None
        return await self._rooms.firmware.of_copy(self._copied, self._owner.record.id, self._vm)


async def thaw(owner: VmOwner) -> None:
    """Let a guest write again, whether or not it was frozen; one that does not answer is asked again."""
    for _ in range(_THAWS):
        if owner.guest is None:
            return
        try:
            await (await owner.guest.agent()).thaw(_THAW_SECONDS)
            return
        except HoldfastError as error:
            log.warning("a guest was not thawed", vm=owner.record.name, error=error.message)


def _wish(job: Job) -> CheckpointWish:
    return CheckpointWish((wanted(job) or {})["type"])


async def _taken(job: Job, kind: CheckpointType, stall: float | None, memory: bool, folder: Path) -> None:
    size = await asyncio.to_thread(lambda: sum(each.stat().st_blocks * 512 for each in folder.iterdir()))
    job.notes["taken"] = {
        "type": kind,
        "stall_seconds": None if stall is None else round(stall, 6),
        "memory": memory,
        "size": size,
        "at": job.params["requested"],
    }
    await job.keep()


def share(source: Path, target: Path) -> None:
    """The same content under another name, in no more room where the file system can."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy_sparse(source, target)
    sync_folder(target.parent)


def _make_folder(folder: Path) -> None:
    for each in (folder.parent, folder):
        if each == folder:
            remove_tree(each)
        each.mkdir(exist_ok=True)
        each.chmod(0o711)  # the VM's user passes through
    sync_folder(folder.parent)


def _write_out(path: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def _make_durable(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
