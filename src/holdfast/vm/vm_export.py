"""A VM to take away: its disks made flat in a format that others read, a descriptor and a manifest.

    scratch/operation-<id>/<vm>-disk0.vmdk ...    each disk in one file that needs no other
                          /<vm>.ovf, <vm>.mf

The files wait for whoever asked for them, who fetches and then forgets them; a restart of the daemon after
the export has ended forgets them too. After a crash before that the disks that are whole are kept. Firmware
state goes along in a container that its owner fetches and puts beside them: here only its size and digest
are known, since nobody's passphrase must ever be stored.
"""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from holdfast.host.files import remove_tree, write_atomic
from holdfast.host.space import require_space
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.attachment import Layer, NotALocalFile
from holdfast.spec.errors import NotFound
from holdfast.spec.firmware_state import StateExport
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.units import GIB
from holdfast.spec.vm import Disk, VmSpec
from holdfast.spec.vm_export import DiskFormat, VmExport
from holdfast.storage.ovf_writer import ExportedDisk, ExportedFile, descriptor, manifest
from holdfast.storage.scratch import operation_folder
from holdfast.storage.volume_content import to_format
from holdfast.storage.volume_to_stream import CompressedClusters, volume_to_stream
from holdfast.vm.admission import Verb
from holdfast.vm.checkpoint_files import FOLDER, firmware_file
from holdfast.vm.firmware_state import NoVtpm, export_lock
from holdfast.vm.lifecycle import Find, RoomsPhase
from holdfast.vm.owner import VmOwner
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms

KIND = "vm.export"


class ExportNotFound(NotFound):
    id = "export-not-found"


class VmExports:
    """Fits `api.services.VmExports`."""

    def __init__(self, rooms: Rooms, registry: VmRegistry, operations: Operations) -> None:
        self._rooms = rooms
        self._registry = registry
        self._operations = operations

    async def begin(self, name: str, request: VmExport, actor: str) -> Operation:
        """Make the files. Raises NoSpace, VolumeMissing, ImageChainBroken, CheckpointNotFound."""
        owner = await self._registry.named(name)
        verb = Verb.EXPORT if request.checkpoint is None else Verb.MERGE
        owner.admits(verb)
        checkpoint, spec = None, owner.record.spec
        if request.checkpoint is not None:
            found = (await self._rooms.checkpoints.tree(owner.record.id)).named(request.checkpoint)
            checkpoint, spec = found.id, found.spec
        await self._require_room(owner, spec, request.format)
        params = {
            "checkpoint": checkpoint,
            "spec": spec.model_copy(update={"cloud_init": None}).model_dump(mode="json"),
            "format": request.format.value,
            "state": request.firmware_state.model_dump() if request.firmware_state else None,
        }
        return await self._registry.begin(KIND, owner, verb, params, actor)

    async def _require_room(self, owner: VmOwner, spec: VmSpec, format: DiskFormat) -> None:
        room = GIB // 4
        for disk in spec.disks:
            await self._rooms.volumes.require(owner.record.name, disk)
            stored = await self._rooms.volumes.stored_size(owner.record.name, disk)
            room += stored // 2 if format is DiskFormat.VMDK else stored
        await asyncio.to_thread(require_space, self._rooms.state.scratch, room)

    async def file(self, export: str, name: str) -> Path:
        """A file that was made. Raises ExportNotFound."""
        operation = await self._operations.get(export)
        done = operation.kind == KIND and operation.state is OperationState.SUCCEEDED
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
        if operation.kind == KIND and operation.state.ended:
            await asyncio.to_thread(remove_tree, operation_folder(self._rooms.state.scratch, operation.id))

    async def checkpoint_state(self, name: str, checkpoint: str, request: StateExport) -> bytes:
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


class _Exporting(RoomsPhase):
    """A phase over the operation's folder."""

    def folder(self, job: Job) -> Path:
        return operation_folder(self._rooms.state.scratch, job.id)

    async def undo(self, job: Job) -> None:
        await asyncio.to_thread(remove_tree, self.folder(job))


class ExportDisks(_Exporting):
    title = "export the disks"
    weight = 10.0

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        spec = VmSpec.model_validate(job.params["spec"])
        folder = self.folder(job)

        def begin() -> None:
            folder.mkdir(exist_ok=True)
            folder.chmod(0o711)  # the VM's user passes through

        await asyncio.to_thread(begin)
        done: dict[str, dict[str, Any]] = job.notes.setdefault("disks", {})
        for number, disk in enumerate(spec.disks):
            if disk.id not in done:
                made = await self._disk(job, owner, disk, (number, len(spec.disks)))
                done[disk.id] = vars(made)
                await job.keep()

    async def _disk(self, job: Job, owner: VmOwner, disk: Disk, place: tuple[int, int]) -> ExportedFile:
        format = DiskFormat(job.params["format"])
        number, disks = place
        target = self.folder(job) / f"{owner.record.name}-{disk.id}.{format.value}"
        layers = self._rooms.volumes.chain(owner.record.name, disk)

        def told(part: float, text: str) -> None:
            job.progress((number + part) / disks, f"{disk.id}: {text}" if text else disk.id)

        if format is DiskFormat.VMDK:
            try:
                return await self._stream(job, owner, layers, disk, target, told)
            except (CompressedClusters, NotALocalFile):
                pass  # QEMU, slower, reads them too
        await to_format(
            self._rooms.processes,
            layers,
            target,
            disk.size,
            format,
            owner=f"operation:{job.id}",
            identity=self._rooms.identities.of(owner.record.number),
            progress=told,
        )
        return ExportedFile(target.name, target.stat().st_size, await asyncio.to_thread(_digest, target))

    async def _stream(
        self, job: Job, owner: VmOwner, layers: tuple[Layer, ...], disk: Disk, target: Path, told: Any
    ) -> ExportedFile:
        done = await volume_to_stream(
            self._rooms.processes,
            layers,
            disk.size,
            target,
            owner=f"operation:{job.id}",
            identity=self._rooms.identities.of(owner.record.number),
            progress=told,
            algorithms=("sha256",),
        )
        return ExportedFile(target.name, done.size, done.digests["sha256"])


class Describe(_Exporting):
    title = "describe the VM"
    weight = 0.1

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        name, spec = owner.record.name, VmSpec.model_validate(job.params["spec"])
        disks = [
            ExportedDisk(disk.id, ExportedFile(**job.notes["disks"][disk.id]), disk.size)
            for disk in spec.disks
        ]
        state = ExportedFile(f"{name}.hfstate", **job.params["state"]) if job.params["state"] else None
        text = descriptor(name, spec, disks, DiskFormat(job.params["format"]), state)
        described = ExportedFile(f"{name}.ovf", len(text), hashlib.sha256(text).hexdigest())
        listed = [described, *(disk.file for disk in disks), *([state] if state else [])]
        sums = manifest(listed)
        folder = self.folder(job)
        await asyncio.to_thread(write_atomic, folder / described.name, text)
        await asyncio.to_thread(write_atomic, folder / f"{name}.mf", sums)
        # In the order of an archive (DSP0243, 5.3).
        job.notes["files"] = {described.name: len(text), f"{name}.mf": len(sums)} | {
            disk.file.name: disk.file.size for disk in disks
        }

    async def undo(self, job: Job) -> None:
        """The folder goes as a whole."""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def procedures(rooms: Rooms, find: Find) -> list[Procedure]:
    def made(job: Job) -> dict[str, Any]:
        files = job.notes["files"]
        return {"vm": job.subject, "export": job.id, "files": files, "order": list(files)}

    return [Procedure(KIND, (ExportDisks(rooms, find), Describe(rooms, find)), made)]
