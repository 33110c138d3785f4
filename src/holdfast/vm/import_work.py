"""Carries imports out: several disks at once, each straight out of its archive into a volume.

    hold files ─▶ folder ─▶ firmware state, if it came along ─▶ disks, else a new state ─▶ start ─▶ clean up

A disk whose volume has its name is done: after a crash the others are brought, and it is not touched. A
stream goes on where it was; how many bytes of it that spared is in the result, as `resumed_at` by disk.
Undoing takes the VM back whole. The record was made together with the operation.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.host.file_identity import FileIdentity
from holdfast.host.files import remove_tree
from holdfast.host.processes import Identity
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.attachment import Place
from holdfast.spec.errors import HoldfastError, InvalidInput
from holdfast.spec.units import MIB, format_size
from holdfast.spec.vm import Disk
from holdfast.storage.appliances.bringing import Bringing, DiskContent, examine
from holdfast.storage.appliances.manifest import Digest
from holdfast.storage.appliances.source import HeldFile
from holdfast.storage.scratch import operation_folder
from holdfast.vm.create import Forget, MakeParts, PrepareFolder, StartIfWanted
from holdfast.vm.import_state import PutState
from holdfast.vm.lifecycle import Find
from holdfast.vm.owner import VmOwner
from holdfast.vm.rooms import Rooms

_AT_ONCE = 3
"""Disks of one machine brought at the same time; each has programs of its own that use a core."""


class DiskLargerThanSaid(InvalidInput):
    id = "disk-larger-than-said"


class HoldFiles:
    """A folder for what must be unpacked first; undone last, so it also drops what was sent."""

    title = "look at the files"
    weight = 0.1

    def __init__(self, rooms: Rooms) -> None:
        self._scratch = rooms.state.scratch

    async def do(self, job: Job) -> None:
        with _opened(job):
            pass  # a file that is gone or was changed is said now
        folder = operation_folder(self._scratch, job.id)

        def make() -> None:
            folder.mkdir(mode=0o711, exist_ok=True)
            folder.chmod(0o711)

        await asyncio.to_thread(make)

    async def undo(self, job: Job) -> None:
        await _clean(self._scratch, job)


class StartIfPossible(StartIfWanted):
    """What was brought over is not taken back because it does not start: why not is told in the result."""

    async def do(self, job: Job) -> None:
        try:
            await super().do(job)
        except HoldfastError as error:
            job.notes["start_error"] = error.as_dict()


class CleanUp:
    title = "clean up"
    weight = 0.1

    def __init__(self, rooms: Rooms) -> None:
        self._scratch = rooms.state.scratch

    async def do(self, job: Job) -> None:
        await _clean(self._scratch, job)

    async def undo(self, job: Job) -> None:
        """Nothing was made."""


async def _clean(scratch: Path, job: Job) -> None:
    def remove() -> None:
        remove_tree(operation_folder(scratch, job.id))
        for path in job.params["uploads"]:
            Path(path).unlink(missing_ok=True)

    await asyncio.to_thread(remove)


@contextlib.contextmanager
def _opened(job: Job) -> Iterator[list[int]]:
    """The handed files. Raises SourceFileChanged."""
    with contextlib.ExitStack() as stack:
        found = []
        for fields in job.params["files"]:
            fd = FileIdentity.of_dict(fields).open()
            stack.callback(os.close, fd)
            found.append(fd)
        yield found


@dataclass
class _Meter:
    """How far the disks of one import are together, told with the rate and the time left."""

    job: Job
    sizes: Mapping[str, int]
    done: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    before: int | None = None

    def tell(self, disk_id: str, part: float) -> None:
        self.done[disk_id] = int(self.sizes[disk_id] * part)
        total, have = sum(self.sizes.values()), sum(self.done.values())
        if self.before is None:
            self.before = have  # what a run before a crash has done says nothing of the rate now
        rate = (have - self.before) / max(time.monotonic() - self.began, 0.001)
        text = f"{format_size(have)} of {format_size(total)}"
        if rate >= MIB:
            text += f", {format_size(int(rate))}/s, {int((total - have) / rate)} s left"
        self.job.progress(have / total if total else 1.0, text)


@dataclass
class _Run:
    """One run of the phase over all disks."""

    fds: list[int]
    meter: _Meter
    gate: asyncio.Semaphore


class BringDisks(MakeParts):
    title = "bring the disks over"
    weight = 20.0

    def __init__(self, rooms: Rooms, find: Find, converter: Identity | None) -> None:
        super().__init__(rooms, find)
        self._converter = converter
        self._runs: dict[str, _Run] = {}

    async def do(self, job: Job) -> None:
        sizes = {disk_id: source["size"] for disk_id, source in job.params["sources"].items()}
        with _opened(job) as fds:
            self._runs[job.id] = _Run(fds, _Meter(job, sizes), asyncio.Semaphore(_AT_ONCE))
            try:
                await super().do(job)
            finally:
                del self._runs[job.id]

    def _has_firmware_state(self, job: Job) -> bool:
        return job.params.get("state") is not None

    async def _make_disk(self, job: Job, owner: VmOwner, disk: Disk) -> None:
        source = job.params["sources"].get(disk.id)
        if source is None:
            await super()._make_disk(job, owner, disk)
            return
        run = self._runs[job.id]
        held = HeldFile(source["name"], run.fds[source["file"]], source["offset"], source["size"])

        async def write(target: Place) -> None:
            await self._bring(job, disk, held, source, target)

        async with run.gate:
            await self._rooms.volumes.put(owner.record.name, disk, write, identity=self._identity(owner))
        run.meter.tell(disk.id, 1.0)

    async def _bring(
        self, job: Job, disk: Disk, held: HeldFile, source: dict[str, Any], target: Place
    ) -> None:
        meter, state = self._runs[job.id].meter, self._rooms.state
        bringing = Bringing(self._rooms.processes, state.runtime, self._converter, f"operation:{job.id}")
        digest = Digest(*source["digest"]) if source["digest"] else None
        if not source["gzip"]:
            content = DiskContent(source["format"], disk.size, source.get("data"))
            done = await bringing.bring(
                held, content, digest, target, disk, lambda part, _: meter.tell(disk.id, part)
            )
            if done is not None and done.resumed_at:
                job.notes.setdefault("resumed_at", {})[disk.id] = done.resumed_at
                await job.keep()  # another kill may come before the phase ends
            return
        unpacked = operation_folder(state.scratch, job.id) / disk.id
        try:
            await bringing.unpack(
                held, digest, unpacked, disk.size + 64 * MIB, lambda done, _: meter.tell(disk.id, done / 2)
            )
            with unpacked.open("rb") as file:
                whole = HeldFile(disk.id, file.fileno(), 0, os.fstat(file.fileno()).st_size)
                content = await asyncio.to_thread(examine, whole)
                _require_fits(content, disk, held)
                claimed = await bringing.claimed(whole, content)
                await self._rooms.volumes.require_room(disk.pool, claimed)
                content = replace(content, data=claimed)
                await bringing.bring(
                    whole, content, None, target, disk, lambda part, _: meter.tell(disk.id, 0.5 + part / 2)
                )
        finally:
            await asyncio.to_thread(unpacked.unlink, missing_ok=True)


def _require_fits(content: DiskContent, disk: Disk, held: HeldFile) -> None:
    """What only unpacking tells may be less than was said, never more."""
    if content.size > disk.size:
        raise DiskLargerThanSaid(
            f"{held.name!r} holds a disk of {format_size(content.size)},"
            f" and {format_size(disk.size)} were said",
            value=content.size,
            cure="Correct the capacity in the description, or unpack the file and import it again.",
        )


def procedures(rooms: Rooms, find: Find, forget: Forget, converter: Identity | None) -> list[Procedure]:
    """`converter`: whom tools run as that read foreign files."""

    def result(job: Job) -> dict[str, Any]:
        told = {"vm": job.subject, "findings": job.params["findings"]}
        return told | {key: job.notes[key] for key in ("start_error", "resumed_at") if key in job.notes}

    phases = (
        HoldFiles(rooms),
        PrepareFolder(rooms, find, forget),
        PutState(rooms, find),
        BringDisks(rooms, find, converter),
        StartIfPossible(find),
        CleanUp(rooms),
    )
    return [Procedure("vm.import", phases, result)]
