"""Imports of VMs from other platforms: planned, admitted and begun here; `import_work` carries them out.

    files ──▶ source ──▶ facts (disks looked at) ──▶ plan ──▶ record and operation, in one transaction

Planning changes nothing. A file is known by what it is (`FileIdentity`), so the operation finds the very
same one again after a crash.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from holdfast.host.file_identity import FileIdentity
from holdfast.host.files import remove_tree
from holdfast.host.processes import Identity
from holdfast.operations.engine import Operations
from holdfast.spec.appliance import Finding, ImportPlan, PlannedDisk, Severity, VmImport
from holdfast.spec.errors import HoldfastError
from holdfast.spec.ids import new_id
from holdfast.spec.operation import Operation
from holdfast.storage.appliances.boot_look import BootLooker
from holdfast.storage.appliances.bringing import examine, peek_gzip
from holdfast.storage.appliances.claims import data_claimed
from holdfast.storage.appliances.source import HeldFile, Source, read_source
from holdfast.trust.firmware_state import FirmwareState
from holdfast.vm.import_admission import ImportAdmission, require_importable
from holdfast.vm.import_plan import DiskFacts, SourceFacts, plan_import
from holdfast.vm.import_state import keep_state, look_at_state, require_fitting
from holdfast.vm.rooms import Rooms


class SourceFiles(Protocol):
    """Files that were sent or handed to the daemon."""

    def identity(self, upload: str) -> FileIdentity: ...

    def uploaded(self, upload: str) -> Path | None:
        """Where its content lies that was sent, to be removed once it is used; None: it was handed over."""
        ...


@dataclass(frozen=True)
class _Looked:
    """A source, what its disks are, and the plan that came of it."""

    source: Source
    facts: SourceFacts
    plan: ImportPlan
    identities: tuple[FileIdentity, ...]
    """Of the handed files."""
    fds: tuple[int, ...]
    """Theirs, in the same order."""
    state: FirmwareState | None
    """What came along and was opened."""


class Imports:
    """What the API asks for. `converter`: whom tools run as that read foreign files."""

    def __init__(
        self, rooms: Rooms, operations: Operations, files: SourceFiles, converter: Identity | None
    ) -> None:
        self._rooms = rooms
        self._files = files
        self._converter = converter
        self._admission = ImportAdmission(rooms, operations)

    async def plan(self, request: VmImport) -> ImportPlan:
        """What an import would do; nothing is changed.

        Raises:
            UploadNotFound, SourceFileChanged: a file is not there.
            WrongPassphrase and others as `look_at_state`: the firmware state does not open.
            and the refusals of `storage.appliances`: the source cannot be read, or must not be.
        """
        async with self._looked(request) as looked:
            return looked.plan

    async def begin(self, request: VmImport, actor: str) -> Operation:
        """Begin an import; its result names the VM.

        Raises:
            NotImportable, EulaNotAccepted, and as `plan`.
        """
        async with self._looked(request) as looked:
            require_importable(looked.plan, request)
            spec = await self._admission.spec(looked.plan)
            plan, wanted, state = looked.plan, looked.source.appliance.id, looked.state
            kept = None
            if state is not None:
                await asyncio.to_thread(require_fitting, state, plan)
                kept = await keep_state(self._rooms, state)
            params = self._params(looked, request, kept)
        tpm = state.tpm.identity if state and state.tpm else None
        try:
            return await self._admission.submit("vm.import", plan.name, spec, wanted, params, actor, tpm)
        except HoldfastError:
            if kept is not None:
                kept.unlink(missing_ok=True)
            raise

    def _params(self, looked: _Looked, request: VmImport, state: Path | None) -> dict[str, Any]:
        """The JSON that the procedure is given; `state`: firmware state that this host alone opens."""
        sources = {}
        for planned in looked.plan.disks:
            held = looked.source.disks.get(planned.source)
            if held is not None:
                sources[planned.id] = _source(planned, held, looked)
        uploads = [path for each in request.files if (path := self._files.uploaded(each.upload))]
        uploads += [state] if state is not None else []
        return {
            "full_copies": {},
            "start": request.start,
            "requested": datetime.now(UTC).isoformat(),
            "files": [identity.as_dict() for identity in looked.identities],
            "uploads": [os.fspath(path) for path in uploads],
            "state": os.fspath(state) if state is not None else None,
            "sources": sources,
            "findings": [each.model_dump(mode="json") for each in looked.plan.findings],
        }

    @contextlib.asynccontextmanager
    async def _looked(self, request: VmImport) -> AsyncIterator[_Looked]:
        """A source that is open until the end of the block."""
        identities = tuple(self._files.identity(each.upload) for each in request.files)
        with contextlib.ExitStack() as stack:
            handed = []
            for each, identity in zip(request.files, identities, strict=True):
                fd = await asyncio.to_thread(identity.open)
                stack.callback(os.close, fd)
                handed.append(HeldFile(each.name, fd, 0, identity.size))
            source = await asyncio.to_thread(read_source, handed, request.machine)
            seen = await look_at_state(self._rooms, source, request)
            facts = SourceFacts(
                disks=await self._disk_facts(source),
                findings=source.findings,
                manifest=next((each.algorithm for each in source.digests.values()), None),
                signature=source.signature,
                state=seen.facts if seen else None,
            )
            host = await self._admission.host(request.pools.values())
            plan = plan_import(source.appliance, facts, host, request)
            fds = tuple(held.fd for held in handed)
            yield _Looked(source, facts, plan, identities, fds, seen.state if seen else None)

    async def _disk_facts(self, source: Source) -> dict[str, DiskFacts]:
        folder = self._rooms.state.scratch / f"look-{new_id()}"
        await asyncio.to_thread(_make_passable, folder)
        looker = BootLooker(
            self._rooms.processes, folder, self._rooms.state.runtime, self._converter, f"import:{folder.name}"
        )
        try:
            found: dict[str, DiskFacts] = {}
            for disk in source.appliance.disks:
                held = source.disks.get(disk.id)
                if held is not None:
                    async with self._rooms.looking:
                        found[disk.id] = await self._facts(held, disk.gzip, looker)
            return found
        finally:
            await asyncio.to_thread(remove_tree, folder)

    async def _facts(self, held: HeldFile, gzip: bool, looker: BootLooker) -> DiskFacts:
        """What a disk's file is; what is wrong with it is a finding and no refusal, so all of it is told."""
        try:
            if gzip:
                peeked = await asyncio.to_thread(peek_gzip, held)
                return DiskFacts(held.size, size=peeked.size if peeked else None)
            content = await asyncio.to_thread(examine, held)
        except HoldfastError as refused:
            problem = Finding(
                id=refused.id,
                severity=Severity.ERROR,
                text=f"{held.name!r}: {refused.message}. {refused.cure}"[:1000],
            )
            return DiskFacts(held.size, problem=problem)
        data = await data_claimed(
            self._rooms.processes,
            held,
            content.format,
            content.size,
            sockets=self._rooms.state.runtime,
            owner=f"import:{new_id()}",
            identity=self._converter,
        )
        boot = await looker.look(held, content.format, content.size)
        return DiskFacts(held.size, content.format, content.size, boot, data=data)


def _make_passable(folder: Path) -> None:
    folder.mkdir(mode=0o711)
    folder.chmod(0o711)


def _source(planned: PlannedDisk, held: HeldFile, looked: _Looked) -> dict[str, Any]:
    """What the operation is told of a disk's file, in JSON."""
    digest = looked.source.digests.get(held.name)
    return {
        "file": looked.fds.index(held.fd),
        "name": held.name,
        "offset": held.offset,
        "size": held.size,
        "format": None if planned.gzip else planned.format,
        "gzip": planned.gzip,
        "data": planned.data,
        "digest": [digest.algorithm, digest.value] if digest else None,
    }
