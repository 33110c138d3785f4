"""A checkpoint to take away: its disks made flat, what describes it, and its firmware state encrypted.

    scratch/operation-<id>/<disk>.qcow2    each disk in one file that needs no other
                          /checkpoint.json

The files wait for whoever asked for them, who fetches and then forgets them; a restart of the daemon forgets
them too. The firmware state is made when it is fetched, since its passphrase must never be stored.
"""

import asyncio
from pathlib import Path
from typing import Any

from holdfast.host.files import remove_tree, write_atomic
from holdfast.host.space import require_space
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.attachment import FilePlace
from holdfast.spec.checkpoint import ExportManifest
from holdfast.spec.errors import NotFound
from holdfast.spec.firmware_state import StateExport
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.units import GIB
from holdfast.spec.vm import Disk, VolumeFormat
from holdfast.storage.scratch import operation_folder
from holdfast.storage.volume_content import flatten
from holdfast.vm.admission import Verb
from holdfast.vm.checkpoint_files import FOLDER, firmware_file
from holdfast.vm.checkpoint_records import Checkpoint
from holdfast.vm.checkpoint_taking import CheckpointPhase
from holdfast.vm.firmware_state import NoVtpm, export_lock
from holdfast.vm.lifecycle import Find
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms

KIND = "vm.export-checkpoint"
VM_KIND = "vm.export"
"""Its files wait and go as those of a checkpoint do."""
_KINDS = (KIND, VM_KIND)
MANIFEST = "checkpoint.json"


class ExportNotFound(NotFound):
    id = "export-not-found"


class CheckpointExports:
    """Fits `api.services.CheckpointExports`."""

    def __init__(self, rooms: Rooms, registry: VmRegistry, operations: Operations) -> None:
        self._rooms = rooms
        self._registry = registry
        self._operations = operations

    async def begin(self, name: str, checkpoint: str, actor: str) -> Operation:
        """Make the files. Raises NoSpace, VolumeMissing, ImageChainBroken."""
        owner = await self._registry.named(name)
        owner.admits(Verb.MERGE)
        found = (await self._rooms.checkpoints.tree(owner.record.id)).named(checkpoint)
        room = GIB // 4
        for disk in found.spec.disks:
            await self._rooms.volumes.require(owner.record.name, disk)
            room += await self._rooms.volumes.stored_size(owner.record.name, disk)
        await asyncio.to_thread(require_space, self._rooms.state.scratch, room)
        params = {"checkpoint": found.id}
        return await self._registry.begin(KIND, owner, Verb.MERGE, params, actor)

    async def file(self, export: str, name: str) -> Path:
        """A file that was made. Raises ExportNotFound."""
        operation = await self._operations.get(export)
        done = operation.kind in _KINDS and operation.state is OperationState.SUCCEEDED
        path = operation_folder(self._rooms.state.scratch, operation.id) / name
        if not done or name not in (operation.result or {}).get("files", {}) or not path.is_file():
            raise ExportNotFound(
                f"there is no file {name[:64]!r} of the export {export[:64]!r}",
                value=name[:64],
                cure="Export it again.",
            )
        return path

    async def forget(self, export: str) -> None:
        """Remove the files of an export that has ended."""
        operation = await self._operations.get(export)
        if operation.kind in _KINDS and operation.state.ended:
            await asyncio.to_thread(remove_tree, operation_folder(self._rooms.state.scratch, operation.id))

    async def firmware_state(self, name: str, checkpoint: str, request: StateExport) -> bytes:
        """The firmware state of a checkpoint, in a container for whoever is named."""
        lock = export_lock(request)
        owner = await self._registry.named(name)
        found = (await self._rooms.checkpoints.tree(owner.record.id)).named(checkpoint)
        path = firmware_file(self._rooms.state.vm(owner.record.name) / FOLDER / found.name)
        if not path.exists():
            raise NoVtpm(
                f"the checkpoint {found.name!r} holds no firmware state",
                value=found.name,
                cure="Leave it out: its VM starts a kernel directly.",
            )
        state = await self._rooms.firmware.kept(path)
        data = await asyncio.to_thread(state.sealed, lock)
        told = {"id": owner.record.id, "checkpoint": found.name}
        await self._rooms.events.emit("vm.firmware-state-exported", owner.record.name, told)
        return data


class MakeFiles(CheckpointPhase):
    title = "make the disks flat"
    weight = 5.0

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        tree = await self._rooms.checkpoints.tree(owner.record.id)
        found = tree.named(job.params["checkpoint"])
        folder = operation_folder(self._rooms.state.scratch, job.id)

        def begin() -> None:
            remove_tree(folder)
            folder.mkdir()
            folder.chmod(0o711)  # the VM's user passes through

        await asyncio.to_thread(begin)
        for number, disk in enumerate(found.spec.disks):
            await self._flatten(job, disk, folder, (number, len(found.spec.disks)))
        await asyncio.to_thread(write_atomic, folder / MANIFEST, _manifest(owner.record.name, found))
        job.notes["files"] = {path.name: path.stat().st_size for path in folder.iterdir()}

    async def _flatten(self, job: Job, disk: Disk, folder: Path, place: tuple[int, int]) -> None:
        record = (await self._owner(job)).record
        number, disks = place

        def told(part: float, _: str) -> None:
            job.progress((number + part) / disks, disk.id)

        await flatten(
            self._rooms.processes,
            self._rooms.volumes.chain(record.name, disk),
            FilePlace(path=folder / f"{disk.id}.qcow2"),
            disk.size,
            VolumeFormat.QCOW2,
            owner=f"operation:{job.id}",
            identity=self._rooms.identities.of(record.number),
            progress=told,
        )

    async def undo(self, job: Job) -> None:
        await asyncio.to_thread(remove_tree, operation_folder(self._rooms.state.scratch, job.id))


def _manifest(vm: str, checkpoint: Checkpoint) -> bytes:
    told = ExportManifest(
        vm=vm,
        checkpoint=checkpoint.name,
        type=checkpoint.type,
        notes=checkpoint.notes,
        created=checkpoint.created,
        spec=checkpoint.spec,
    )
    return told.model_dump_json(indent=2).encode()


def procedures(rooms: Rooms, find: Find) -> list[Procedure]:
    def made(job: Job) -> dict[str, Any]:
        return {"vm": job.subject, "export": job.id, "files": job.notes["files"]}

    return [Procedure(KIND, (MakeFiles(rooms, find),), made)]
