"""Carries imports from vSphere out: of a VM that is off there, or warm, of one that runs on meanwhile.

    cold:  folder ─▶ disks, variable store, vTPM ─▶ start ─▶ clean up
    warm:  folder ─▶ first copy by a snapshot ─▶ changes, round by round ─▶ cut over ─▶ start ─▶ clean up
                                                     │ little, or the time │   └ shut down there, last round

Undoing takes the VM here back whole, removes the snapshot there, and starts the VM there again where it
was shut down by this operation.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.units import MIB
from holdfast.spec.vm import VmState
from holdfast.storage.vsphere.refusals import BUSY, VsphereRefused, VsphereUnreachable, VsphereVmRunsAgain
from holdfast.storage.vsphere.transfer import Patience
from holdfast.vm.create import Forget, MakeParts, PrepareFolder
from holdfast.vm.import_work import StartIfPossible
from holdfast.vm.lifecycle import Find, RoomsPhase
from holdfast.vm.records import VmNotFound
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
_LONG = 300.0
"""Seconds of work after which an error is a new one, with the whole patience before it."""

log = structlog.get_logger(__name__)


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


class _AtSource(RoomsPhase):
    """A phase that speaks to the server, and tries again where that is away or busy for a while.

    Of what is here it changes nothing but the disks; `PrepareFolder` takes those back.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source.rooms, source.find)
        self._source = source

    async def do(self, job: Job) -> None:
        await self._patiently(self._do, job)

    async def _do(self, job: Job) -> None:
        raise NotImplementedError

    async def _patiently(self, work: Callable[[Job], Awaitable[None]], job: Job) -> None:
        pauses = list(self._source.patience.pauses)
        while True:
            began = time.monotonic()
            try:
                await work(job)
                return
            except Exception as failed:
                if time.monotonic() - began > _LONG:
                    pauses = list(self._source.patience.pauses)
                if not pauses or not _passes(failed):
                    raise
                log.warning("vSphere is asked again", operation=job.id, phase=self.title, error=str(failed))
                await asyncio.sleep(pauses.pop(0))


def _passes(failed: BaseException) -> bool:
    if isinstance(failed, BaseExceptionGroup):
        return all(_passes(each) for each in failed.exceptions)
    busy = isinstance(failed, VsphereRefused) and failed.value == BUSY
    return busy or isinstance(failed, VsphereUnreachable)


class TakeAccess(_AtSource):
    """Undone last: only then is the password no longer needed."""

    title = "look at the source"
    weight = 0.1

    async def do(self, job: Job) -> None:
        async with self._source.machine(job):
            pass

    async def undo(self, job: Job) -> None:
        await asyncio.to_thread(Path(job.params["path"]).unlink, missing_ok=True)


class CopyOff(_AtSource):
    title = "bring the disks over"
    weight = 20.0

    async def _do(self, job: Job) -> None:
        async with self._source.machine(job) as machine:
            await (await self._source.rounds(job, machine)).copy_off("disks")


class FirstCopy(_AtSource):
    title = "bring the disks over while it runs"
    weight = 20.0

    async def _do(self, job: Job) -> None:
        async with self._source.machine(job) as machine:
            rounds = await self._source.rounds(job, machine)
            if job.notes.get("round"):
                await rounds.clear()  # a crash may have come before that
            else:
                await rounds.copy("first copy")

    async def undo(self, job: Job) -> None:
        await self._patiently(self._clear, job)

    async def _clear(self, job: Job) -> None:
        async with self._source.machine(job) as machine:
            await (await self._source.rounds(job, machine)).clear()


class BringChanges(_AtSource):
    title = "bring the changes"
    weight = 5.0

    async def _do(self, job: Job) -> None:
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

    async def _do(self, job: Job) -> None:
        from holdfast.storage.vsphere.session import asked

        async with self._source.machine(job) as machine:
            rounds = await self._source.rounds(job, machine)
            if "off" not in job.notes:
                if "was_running" not in job.notes:
                    job.notes["was_running"] = await asked(machine.session, machine.running)
                    await job.keep()
                job.progress(0.0, "shutting the guest down")
                await asked(machine.session, machine.shut_down, _SHUTDOWN_SECONDS)
                job.notes["off"] = job.notes.get("round", 0)
                await job.keep()
            if job.notes.get("round", 0) == job.notes["off"]:
                await rounds.copy("last changes")
            await rounds.clear()
            if await asked(machine.session, machine.running):
                raise VsphereVmRunsAgain(
                    f"{job.subject!r} was started there again after it was shut down for the cut-over",
                    value=job.subject,
                    cure="See who or what starts it there, and import it again.",
                )

    async def undo(self, job: Job) -> None:
        if job.notes.get("was_running"):
            await self._end_here(job)
            await self._patiently(self._power_on, job)

    async def _end_here(self, job: Job) -> None:
        """What was started here, as the two must not run at once."""
        with contextlib.suppress(VmNotFound):
            owner = await self._owner(job)
            if owner.record.state not in (VmState.OFF, VmState.FAILED, VmState.SAVED):
                await owner.kill()

    async def _power_on(self, job: Job) -> None:
        from holdfast.storage.vsphere.session import asked

        async with self._source.machine(job) as machine:
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

    begin = (TakeAccess(source), PrepareFolder(rooms, find, forget), MakeParts(rooms, find))
    end = (StartIfPossible(find), ForgetAccess(source))
    warm = (FirstCopy(source), BringChanges(source), CutOver(source))
    return [
        Procedure(COLD, (*begin, CopyOff(source), *end), result),
        Procedure(WARM, (*begin, *warm, *end), result),
    ]
