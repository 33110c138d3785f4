"""Return of a VM to a checkpoint: disks, firmware state, specification and memory, as one unit.

    new layers over the checkpoint's ─▶ end the machine ─▶ firmware state, memory, record ─▶ start ─▶ tidy up

The checkpoint itself stays as it is: what the VM writes from then on goes into layers of its own, and the
memory is read under another name. Until the VM has been started again every step can be undone: the layers
that it had are there, and its firmware state lies beside. A guest that ran before cannot be brought back:
undone, the VM is off.
"""

import asyncio
import contextlib
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.orm import object_session

from holdfast.catalog.tables import VmRow
from holdfast.operations.procedure import Job
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import UefiBoot, VmSpec, VmState
from holdfast.trust.firmware_state import copy_files
from holdfast.vm import checkpoint_records, layers
from holdfast.vm.admission import Verb
from holdfast.vm.checkpoint_files import FOLDER, firmware_file, make_folder, memory_file, share
from holdfast.vm.checkpoint_records import Checkpoint
from holdfast.vm.checkpoint_taking import CheckpointPhase
from holdfast.vm.memory_image import MemoryImage
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import set_spec

log = structlog.get_logger(__name__)

_BEFORE = ".before"
"""In the folder of checkpoints, with the firmware state that an undone return puts back."""
_DONE = "applied"


class _Applying(CheckpointPhase):
    async def _checkpoint(self, job: Job) -> Checkpoint:
        tree = await self._rooms.checkpoints.tree(job.params["vm"])
        return tree.named(job.params["checkpoint"])


class MakeTops(_Applying):
    title = "make new layers over the checkpoint's"
    weight = 0.2

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        if _DONE not in job.notes and "return" not in job.notes:
            await owner.request(lambda: self._make(job, owner))

    async def _make(self, job: Job, owner: VmOwner) -> None:
        owner.admits(Verb.APPLY_CHECKPOINT, job.id)
        checkpoint = await self._checkpoint(job)
        await self._merging.tidy(owner)
        named = layers.named(await self._merging.specs(owner))
        disks = {disk.id: disk for spec in checkpoint.specs for disk in spec.disks}
        tops = {each: layers.next_layer(each, named[each]) for each in disks}
        job.notes["return_tops"] = tops
        identity = self._rooms.identities.of(owner.record.number)
        for disk in disks.values():
            await self._rooms.volumes.create_overlay(
                owner.record.name, disk, tops[disk.id], identity=identity, operation=job.id
            )

    async def undo(self, job: Job) -> None:
        owner = await self._owner(job)
        if _DONE not in job.notes:
            await owner.request(lambda: self._merging.tidy(owner))


class EndMachine(_Applying):
    title = "end the machine"
    weight = 0.2

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        if _DONE not in job.notes and "return" not in job.notes:
            await owner.kill()


class Return(_Applying):
    title = "put everything back"
    weight = 1.0

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        if _DONE not in job.notes:
            await owner.request(lambda: self._return(job, owner))

    async def _return(self, job: Job, owner: VmOwner) -> None:
        record, checkpoint = owner.record, await self._checkpoint(job)
        folder = self._rooms.state.vm(record.name)
        place = folder / FOLDER
        if "return" not in job.notes:
            job.notes["return"] = await self._present(owner)
            await job.keep()
        if isinstance(checkpoint.spec.boot, UefiBoot):
            state = await self._rooms.firmware.kept(firmware_file(place / checkpoint.name))
            identity = self._rooms.identities.of(record.number)
            await self._rooms.firmware.put(state, record.id, folder, identity)
        image = MemoryImage(folder)
        if checkpoint.has_memory:
            await asyncio.to_thread(share, memory_file(place / checkpoint.name), image.partial)
            await asyncio.to_thread(image.publish)
        tops = job.notes["return_tops"]

        def store(row: VmRow) -> None:
            set_spec(row, layers.with_tops(checkpoint.spec, tops))
            built = checkpoint.running_spec
            row.running_spec = layers.with_tops(built, tops).model_dump(mode="json") if built else None
            row.state = VmState.SAVED if built else VmState.OFF
            row.machine_type, row.acceleration = checkpoint.machine_type, checkpoint.acceleration
            row.failure, row.guest, row.addresses, row.boot_seconds = None, None, [], None
            session = object_session(row)
            if session is not None:
                checkpoint_records.set_current(session, row.id, checkpoint.id)

        await owner.change(store, "vm.checkpoint-applied", {"checkpoint": checkpoint.name})

    async def _present(self, owner: VmOwner) -> dict[str, Any]:
        """What an undo needs; a firmware state that is broken now is not worth returning to."""
        record, tree = owner.record, await self._rooms.checkpoints.tree(owner.record.id)
        boot, folder = record.spec.boot, self._rooms.state.vm(record.name)
        kept = False
        if isinstance(boot, UefiBoot):
            with contextlib.suppress(HoldfastError, OSError):
                copied = await asyncio.to_thread(copy_files, folder, has_tpm=boot.tpm)
                state = await self._rooms.firmware.of_copy(copied, record.id, folder)
                place = folder / FOLDER / _BEFORE
                await asyncio.to_thread(make_folder, place)
                await self._rooms.firmware.keep(state, firmware_file(place))
                kept = True
        return {
            "spec": record.spec.model_dump(mode="json"),
            "machine_type": record.machine_type,
            "acceleration": record.acceleration,
            "current": tree.current,
            "firmware": kept,
        }

    async def undo(self, job: Job) -> None:
        owner = await self._owner(job)
        if _DONE not in job.notes and "return" in job.notes:
            if owner.machine is not None or owner.record.state is VmState.SAVED:
                await owner.kill()
            await owner.request(lambda: self._go_back(owner, job.notes["return"]))

    async def _go_back(self, owner: VmOwner, before: dict[str, Any]) -> None:
        record = owner.record
        folder = self._rooms.state.vm(record.name)
        if before["firmware"]:
            state = await self._rooms.firmware.kept(firmware_file(folder / FOLDER / _BEFORE))
            identity = self._rooms.identities.of(record.number)
            await self._rooms.firmware.put(state, record.id, folder, identity)

        def store(row: VmRow) -> None:
            set_spec(row, VmSpec.model_validate(before["spec"]))
            row.running_spec, row.state = None, VmState.OFF
            row.machine_type, row.acceleration = before["machine_type"], before["acceleration"]
            session = object_session(row)
            if session is not None:
                checkpoint_records.set_current(session, row.id, before["current"])

        await owner.change(store, "vm.checkpoint-apply-failed")
        await asyncio.to_thread(MemoryImage(folder).discard)


class StartAgain(_Applying):
    title = "start the machine"
    weight = 2.0

    async def do(self, job: Job) -> None:
        if _DONE in job.notes or not job.params["start"]:
            return
        owner = await self._owner(job)
        requested = datetime.fromisoformat(job.params["requested"])
        await owner.request(lambda: owner.start(job.id, requested))


class TidyUp(_Applying):
    """From here on nothing is undone: the layers from before go."""

    title = "merge what is not needed any more"
    weight = 2.0

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        job.notes[_DONE] = True
        await job.keep()
        try:
            await self._merging.all_that_can(owner, job)
        except HoldfastError as error:
            # The VM is what it was to be; the next work on its checkpoints merges them.
            log.warning("layers were left", vm=owner.record.name, error=error.message, cure=error.cure)
            await owner.request(lambda: self._merging.tidy(owner))


class ForgetCheckpoints(CheckpointPhase):
    """The records first: what no checkpoint needs any more may then be merged."""

    title = "remove the checkpoint"
    weight = 0.1

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        await owner.request(lambda: self._forget(job, owner))

    async def _forget(self, job: Job, owner: VmOwner) -> None:
        ids = frozenset(job.params["checkpoints"])
        tree = await self._rooms.checkpoints.tree(owner.record.id)
        names = [each.name for each in tree.checkpoints if each.id in ids]
        if not names:
            return
        owner.admits(Verb.MERGE, job.id)

        def store(row: VmRow) -> None:
            session = object_session(row)
            if session is not None:
                checkpoint_records.remove(session, row.id, ids)

        await owner.change(store, "vm.checkpoint-deleted", {"checkpoints": names})
        await self._merging.tidy(owner)


class MergeLayers(CheckpointPhase):
    title = "merge layers"
    weight = 5.0

    async def do(self, job: Job) -> None:
        await self._merging.all_that_can(await self._owner(job), job)

    async def undo(self, job: Job) -> None:
        """The checkpoint is gone; layers that were not merged yet are merged by the next work on others."""
        owner = await self._owner(job)
        await owner.request(lambda: self._merging.settle(owner, job))
