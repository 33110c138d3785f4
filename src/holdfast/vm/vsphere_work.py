"""Carries imports from vSphere out: of a VM that is off there, or warm, of one that runs on meanwhile.

    cold:  folder ─▶ disks, variable store, vTPM ─▶ start ─▶ clean up
    warm:  folder ─▶ first copy by a snapshot ─▶ changes, round by round ─▶ cut over ─▶ start ─▶ clean up
                                                     │ little, or the time │   └ shut down there, last round

Undoing takes the VM here back whole, removes the snapshot there, and starts the VM there again where it
was shut down by this operation.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.units import MIB
from holdfast.spec.vm import Disk
from holdfast.storage.vsphere.transfer import Patience
from holdfast.vm.create import Forget, MakeParts, PrepareFolder
from holdfast.vm.import_work import StartIfPossible
from holdfast.vm.lifecycle import Find
from holdfast.vm.owner import VmOwner
from holdfast.vm.rooms import Rooms
from holdfast.vm.vsphere_access import VsphereDoor
from holdfast.vm.vsphere_copy import Rounds

if TYPE_CHECKING:
    from holdfast.storage.vsphere.machine import Machine

COLD, WARM = "vm.import-vsphere", "vm.import-vsphere-warm"
_LITTLE = 64 * MIB
"""Bytes of one round that are brought fast enough for the cut-over to begin."""
_MOST_ROUNDS = 12
"""Rounds for a guest that writes more than can be brought."""
_SHUTDOWN_SECONDS = 600.0


@dataclass(frozen=True)
class Source:
    """How an operation reaches the VM there."""

    rooms: Rooms
    door: VsphereDoor
    find: Find
    patience: Patience = field(default_factory=Patience)

    @contextlib.asynccontextmanager
    async def machine(self, job: Job) -> AsyncIterator["Machine"]:
        access = await self.door.kept(Path(job.params["path"]))
        async with self.door.session(access) as session:
            from holdfast.storage.vsphere.machine import Machine

            yield Machine(session, job.params["machine"], job.params["datacenter"])

    async def rounds(self, job: Job, machine: "Machine") -> Rounds:
        owner = await self.find(job.params["vm"])
        identity = self.rooms.identities.of(owner.record.number)
        return Rounds(self.rooms, job, owner, machine, identity, self.patience)


class _AtSource:
    """A phase that changes nothing here but the disks; `PrepareFolder` takes those back."""

    title = ""
    weight = 1.0

    def __init__(self, source: Source) -> None:
        self._source = source

    async def do(self, job: Job) -> None:
        raise NotImplementedError

    async def undo(self, job: Job) -> None:
        """Nothing."""


class TakeAccess(_AtSource):
    """Undone last: only then is the password no longer needed."""

    title = "look at the source"
    weight = 0.1

    async def do(self, job: Job) -> None:
        async with self._source.machine(job):
            pass

    async def undo(self, job: Job) -> None:
        await asyncio.to_thread(Path(job.params["path"]).unlink, missing_ok=True)


class BlankParts(MakeParts):
    """Blank volumes, variable store and vTPM; volumes of an earlier run stay as far as they are."""

    title = "make disks and firmware state"
    weight = 0.5

    async def _make_disk(self, job: Job, owner: VmOwner, disk: Disk) -> None:
        made = job.notes.setdefault("blank", [])
        if disk.id not in made:
            await super()._make_disk(job, owner, disk)
            made.append(disk.id)


class CopyOff(_AtSource):
    title = "bring the disks over"
    weight = 20.0

    async def do(self, job: Job) -> None:
        async with self._source.machine(job) as machine:
            await (await self._source.rounds(job, machine)).copy_off("disks")


class FirstCopy(_AtSource):
    title = "bring the disks over while it runs"
    weight = 20.0

    async def do(self, job: Job) -> None:
        if job.notes.get("round"):
            return
        async with self._source.machine(job) as machine:
            await (await self._source.rounds(job, machine)).copy("first copy")

    async def undo(self, job: Job) -> None:
        async with self._source.machine(job) as machine:
            await (await self._source.rounds(job, machine)).clear()


class BringChanges(_AtSource):
    title = "bring the changes"
    weight = 5.0

    async def do(self, job: Job) -> None:
        """Until a round brings little, or until the time of the cut-over."""
        at = datetime.fromisoformat(job.params["cut_over_at"]) if job.params["cut_over_at"] else None
        before: int | None = None
        while job.notes.get("round", 0) < _MOST_ROUNDS or at is not None:
            if at is not None and not await self._waited(job, at):
                return
            async with self._source.machine(job) as machine:
                rounds = await self._source.rounds(job, machine)
                brought = await rounds.copy(f"round {job.notes.get('round', 0)}")
            converges = before is None or brought <= before * 3 // 4
            if at is None and (brought <= _LITTLE or not converges):
                return
            before = brought

    async def _waited(self, job: Job, at: datetime) -> bool:
        """True: another round is due before the cut-over."""
        left = (at - datetime.now(UTC)).total_seconds()
        if left <= 0:
            return False
        job.progress(0.5, f"copied; cuts over at {at.isoformat(timespec='minutes')}")
        # A time of the day is awaited, no event.
        await asyncio.sleep(min(left, job.params["interval"]))
        return (at - datetime.now(UTC)).total_seconds() > 0


class CutOver(_AtSource):
    title = "shut it down there and bring the rest"
    weight = 3.0

    async def do(self, job: Job) -> None:
        from holdfast.storage.vsphere.session import asked

        async with self._source.machine(job) as machine:
            rounds = await self._source.rounds(job, machine)
            if "off" not in job.notes:
                if "was_running" not in job.notes:
                    job.notes["was_running"] = await asked(machine.session, machine.running)
                    await job.keep()
                job.progress(0.0, "shutting the guest down")
                await asked(machine.session, machine.shut_down, _SHUTDOWN_SECONDS)
                if job.notes.get("snapshot"):
                    # Of a round that a crash cut off, from before the shutdown: the last one comes after it.
                    await rounds.copy("changes")
                job.notes["off"] = job.notes.get("round", 0)
                await job.keep()
            if job.notes.get("round", 0) == job.notes["off"]:
                await rounds.copy("last changes")
            await rounds.clear()

    async def undo(self, job: Job) -> None:
        if not job.notes.get("was_running"):
            return
        async with self._source.machine(job) as machine:
            from holdfast.storage.vsphere.session import asked

            await asked(machine.session, machine.power_on)


class ForgetAccess(_AtSource):
    title = "clean up"
    weight = 0.1

    async def do(self, job: Job) -> None:
        await asyncio.to_thread(Path(job.params["path"]).unlink, missing_ok=True)


def procedures(source: Source, forget: Forget) -> list[Procedure]:
    rooms, find = source.rooms, source.find

    def result(job: Job) -> dict[str, Any]:
        error = job.notes.get("start_error")
        rounds = job.notes.get("round", 0)
        return {
            "vm": job.subject,
            **({"rounds": rounds} if rounds else {}),
            **({"start_error": error} if error else {}),
        }

    begin = (TakeAccess(source), PrepareFolder(rooms, find, forget), BlankParts(rooms, find))
    end = (StartIfPossible(find), ForgetAccess(source))
    warm = (FirstCopy(source), BringChanges(source), CutOver(source))
    return [
        Procedure(COLD, (*begin, CopyOff(source), *end), result),
        Procedure(WARM, (*begin, *warm, *end), result),
    ]
