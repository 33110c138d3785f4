"""Checkpoints of VMs, as the API asks for them: refused before the first change where they cannot work.

checkpoint create     an operation: `checkpoint_taking`
checkpoint apply      an operation: `checkpoint_applying`
checkpoint delete     an operation: the records go, then layers are merged: `layer_merging`

<VM folder>/checkpoints/<name>/memory             where it has one
                              /firmware.hfstate   a container that the host key opens
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from holdfast.host.space import require_memory, require_space
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.checkpoint import (
    CheckpointApply,
    CheckpointChange,
    CheckpointCreate,
    CheckpointSchedule,
    CheckpointView,
    CheckpointWish,
)
from holdfast.spec.errors import Conflict, Insufficient, RemoteError, Unsupported
from holdfast.spec.ids import new_id
from holdfast.spec.operation import Operation
from holdfast.spec.vm import KernelBoot, UefiBoot, VmSpec, VmState
from holdfast.trust.bounded import read_bounded
from holdfast.trust.envelope import LONGEST, FirmwareStateDamaged
from holdfast.trust.firmware_state import read_header
from holdfast.vm import layers
from holdfast.vm.admission import Verb
from holdfast.vm.checkpoint_applying import (
    EndMachine,
    ForgetCheckpoints,
    MakeTops,
    MergeLayers,
    Return,
    StartAgain,
    TidyUp,
)
from holdfast.vm.checkpoint_files import FOLDER, firmware_file, memory_file
from holdfast.vm.checkpoint_of_machine import MEMORY_OVERHEAD
from holdfast.vm.checkpoint_records import Checkpoint, CheckpointTree
from holdfast.vm.checkpoint_taking import (
    CREATE,
    CheckpointPhase,
    PrepareLayers,
    RecordCheckpoint,
    TakeCheckpoint,
)
from holdfast.vm.disk_specs import require_movable_memory
from holdfast.vm.lifecycle import Find
from holdfast.vm.owner import VmOwner
from holdfast.vm.planning import require_volume
from holdfast.vm.records import own_specs
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms

MOST = 50
"""Of one VM."""


class TooManyCheckpoints(Insufficient):
    id = "too-many-checkpoints"


class ChainTooDeep(Insufficient):
    id = "checkpoint-chain-too-deep"


class GuardedVm(Unsupported):
    id = "checkpoint-of-guarded-vm"


class CheckpointDamaged(Conflict):
    id = "checkpoint-damaged"


class OtherAcceleration(Unsupported):
    id = "checkpoint-of-other-acceleration"


class Checkpoints:
    """Fits `api.services.Checkpoints`."""

    def __init__(self, rooms: Rooms, registry: VmRegistry, operations: Operations) -> None:
        self._rooms = rooms
        self._registry = registry
        self._operations = operations

    # Looking

    async def list(self, name: str) -> tuple[CheckpointView, ...]:
        return (await self._tree(await self._registry.named(name))).views()

    async def show(self, name: str, checkpoint: str) -> CheckpointView:
        tree = await self._tree(await self._registry.named(name))
        found = tree.named(checkpoint)
        return next(view for view in tree.views() if view.id == found.id)

    async def schedule(self, name: str) -> CheckpointSchedule:
        return (await self._tree(await self._registry.named(name))).schedule

    async def set_schedule(self, name: str, schedule: CheckpointSchedule) -> CheckpointSchedule:
        owner = await self._registry.named(name)
        await self._rooms.checkpoints.set_schedule(owner.record.id, schedule)
        return schedule

    # Work

    async def create(
        self, name: str, request: CheckpointCreate, actor: str, *, scheduled: bool = False
    ) -> Operation:
        owner = await self._registry.named(name)
        owner.admits(Verb.CHECKPOINT)
        params = await self._new(owner, request, scheduled)
        return await self._registry.begin(CREATE, owner, Verb.CHECKPOINT, params, actor)

    async def apply(self, name: str, checkpoint: str, request: CheckpointApply, actor: str) -> Operation:
        owner = await self._registry.named(name)
        owner.admits(Verb.APPLY_CHECKPOINT)
        tree = await self._tree(owner)
        found = tree.named(checkpoint)
        ran = owner.record.state in (VmState.RUNNING, VmState.PAUSED)
        start = request.start if request.start is not None else ran or found.has_memory
        await self._require_whole(owner, found, start)
        params: dict[str, Any] = {"requested": _now()}
        if request.checkpoint_first:
            kind = CheckpointCreate(
                type=CheckpointWish.PRODUCTION, notes=f"Before the return to {found.name!r}"
            )
            params = await self._new(owner, kind, scheduled=False)
        params |= {"checkpoint": found.id, "start": start}
        return await self._registry.begin("vm.apply", owner, Verb.APPLY_CHECKPOINT, params, actor)

    async def delete(self, name: str, checkpoint: str, subtree: bool, actor: str) -> Operation:
        owner = await self._registry.named(name)
        tree = await self._tree(owner)
        found = tree.named(checkpoint)
        doomed = tree.subtree(found) if subtree else (found,)
        return await self.forget(owner, doomed, actor)

    async def forget(self, owner: VmOwner, doomed: "tuple[Checkpoint, ...]", actor: str) -> Operation:
        owner.admits(Verb.MERGE)
        params = {"checkpoints": [each.id for each in doomed]}
        return await self._registry.begin("vm.delete-checkpoint", owner, Verb.MERGE, params, actor)

    async def change(
        self, name: str, checkpoint: str, change: CheckpointChange, actor: str
    ) -> CheckpointView:
        owner = await self._registry.named(name)
        tree = await self._tree(owner)
        found = tree.named(checkpoint)
        if change.name is not None and change.name.lower() != found.name.lower():
            tree.require_free(change.name)
        params = {
            "checkpoint": found.id,
            "old_name": found.name,
            "name": change.name or found.name,
            "notes": change.notes,
        }
        begun = await self._registry.begin("vm.change-checkpoint", owner, Verb.KEYS, params, actor)
        ended = await self._operations.wait(begun.id)
        if ended.error:
            raise RemoteError(ended.error)
        return await self.show(owner.record.id, found.id)

    # What is refused

    async def _new(self, owner: VmOwner, request: CheckpointCreate, scheduled: bool) -> dict[str, Any]:
        record, tree = owner.record, await self._tree(owner)
        requested = _now()
        name = request.name or _free_name(tree, requested)
        tree.require_free(name)
        self._require_room(owner, tree)
        self._require_unguarded(owner)
        for spec in own_specs(owner.record):
            for disk in spec.disks:
                require_volume(record.name, disk)
                await self._rooms.volumes.require(record.name, disk)
        if owner.machine is not None and request.type is CheckpointWish.STANDARD:
            require_movable_memory(record)
            memory = (record.running_spec or record.spec).memory
            await asyncio.to_thread(require_space, self._rooms.state.vms, memory + MEMORY_OVERHEAD)
        new = {"id": new_id(), "name": name, "notes": request.notes, "type": request.type}
        return {"new": {**new, "scheduled": scheduled}, "requested": requested}

    def _require_room(self, owner: VmOwner, tree: CheckpointTree) -> None:
        if len(tree.checkpoints) >= MOST:
            raise TooManyCheckpoints(
                f"VM {owner.record.name!r} has {MOST} checkpoints, and can have no more",
                value=len(tree.checkpoints),
                cure="Delete some that are not needed any more.",
            )
        deepest = max(layers.depth(spec) for spec in own_specs(owner.record))
        if deepest >= layers.MOST_LAYERS:
            raise ChainTooDeep(
                f"a disk of VM {owner.record.name!r} has {deepest} layers, and can have no more",
                value=deepest,
                cure="Delete checkpoints that are not needed any more: their layers are merged then.",
            )

    @staticmethod
    def _require_unguarded(owner: VmOwner) -> None:
        if owner.record.spec.require_attested_host:
            raise GuardedVm(
                f"VM {owner.record.name!r} starts on attested hosts only: a checkpoint would hold the key of"
                " its vTPM without what guards it",
                value=owner.record.name,
                cure="Copy its disks from within; or lift the guard:"
                f" `holdfast vm set {owner.record.name} --no-require-attested-host`.",
            )

    async def _require_whole(self, owner: VmOwner, checkpoint: Checkpoint, start: bool) -> None:
        """Everything that the return needs is there. Raises the refusal."""
        self._require_unguarded(owner)
        name = owner.record.name
        for spec in checkpoint.specs:
            await self._require_spec(name, spec)
        folder = self._rooms.state.vm(name) / FOLDER / checkpoint.name
        if checkpoint.has_memory:
            if not memory_file(folder).is_file():
                raise _damaged(checkpoint, memory_file(folder))
            await self._require_acceleration(checkpoint)
        if isinstance(checkpoint.spec.boot, UefiBoot):
            try:
                header, _ = read_header(await asyncio.to_thread(read_bounded, firmware_file(folder), LONGEST))
            except (OSError, FirmwareStateDamaged) as error:
                raise _damaged(checkpoint, firmware_file(folder)) from error
            if header.vm != owner.record.id:
                raise _damaged(checkpoint, firmware_file(folder))
        if start:
            ran = owner.record.running_spec
            freed = ran.memory if ran is not None and owner.machine is not None else 0
            need = (checkpoint.running_spec or checkpoint.spec).memory
            await asyncio.to_thread(require_memory, max(0, need - freed))

    async def _require_acceleration(self, checkpoint: Checkpoint) -> None:
        now = (await self._rooms.acceleration.verdict()).acceleration
        if checkpoint.acceleration not in (None, now):
            raise OtherAcceleration(
                f"the memory of checkpoint {checkpoint.name!r} is of a machine that ran by"
                f" {checkpoint.acceleration}; this host runs VMs by {now} now",
                value=checkpoint.acceleration,
                cure="Return to it where VMs run as they did; its disks can be exported:"
                " `holdfast checkpoint export`.",
            )

    async def _require_spec(self, name: str, spec: VmSpec) -> None:
        for disk in spec.disks:
            await self._rooms.volumes.require(name, disk)
        for nic in spec.nics:
            if nic.switch is not None:
                await self._rooms.switches.get(nic.switch)
        digests = [drive.image for drive in spec.cd_drives]
        if isinstance(spec.boot, KernelBoot):
            digests += [spec.boot.kernel, spec.boot.initrd]
        for digest in digests:
            if digest is not None:
                await self._rooms.images.path(digest)

    async def _tree(self, owner: VmOwner) -> CheckpointTree:
        return await self._rooms.checkpoints.tree(owner.record.id)


class ChangeCheckpoint(CheckpointPhase):
    """The folder carries the name: both change, and a crash between them is mended by running again."""

    title = "change the checkpoint"

    async def do(self, job: Job) -> None:
        await self._change(job, job.params["name"], job.params["notes"])

    async def _change(self, job: Job, name: str, notes: str | None) -> None:
        owner = await self._owner(job)

        async def apply() -> None:
            tree = await self._rooms.checkpoints.tree(owner.record.id)
            found = tree.named(job.params["checkpoint"])
            if found.name.lower() != name.lower():
                tree.require_free(name)
            await asyncio.to_thread(_rename, self._folder(owner, found.name), self._folder(owner, name))
            await self._rooms.checkpoints.describe(found.id, name, notes)

        await owner.request(apply)

    async def undo(self, job: Job) -> None:
        await self._change(job, job.params["old_name"], None)


def _rename(old: Path, new: Path) -> None:
    if old != new and old.exists():
        old.rename(new)


def procedures(rooms: Rooms, find: Find) -> list[Procedure]:
    taking = (PrepareLayers(rooms, find), TakeCheckpoint(rooms, find), RecordCheckpoint(rooms, find))
    applying = (MakeTops, EndMachine, Return, StartAgain, TidyUp)

    def made(job: Job) -> dict[str, Any]:
        taken = job.notes["taken"]
        facts = {key: taken[key] for key in ("type", "stall_seconds", "size")}
        return {"vm": job.subject, "checkpoint": job.params["new"]["name"], **facts}

    def named(job: Job) -> dict[str, Any]:
        return {"vm": job.subject}

    return [
        Procedure(CREATE, taking, made),
        Procedure("vm.apply", (*taking, *(each(rooms, find) for each in applying)), named),
        Procedure("vm.delete-checkpoint", (ForgetCheckpoints(rooms, find), MergeLayers(rooms, find)), named),
        Procedure("vm.change-checkpoint", (ChangeCheckpoint(rooms, find),), named),
    ]


def _damaged(checkpoint: Checkpoint, path: Path) -> CheckpointDamaged:
    return CheckpointDamaged(
        f"the checkpoint {checkpoint.name!r} is not whole: {path} is missing or damaged",
        value=str(path),
        cure="Put the file back from a backup, or delete the checkpoint.",
    )


def _free_name(tree: CheckpointTree, requested: str) -> str:
    """From the time, such as `2026-03-01 14-05-09`."""
    name = requested[:19].replace("T", " ").replace(":", "-")
    taken = {each.name for each in tree.checkpoints}
    if name not in taken:
        return name
    return next(each for each in (f"{name}.{number}" for number in range(2, MOST + 3)) if each not in taken)


def _now() -> str:
    return datetime.now(UTC).isoformat()
