"""One round of copying a VM's disks from vSphere into its volumes: all of them, or what changed since.

Notes of the operation, all durable:

    snapshot    managed object id of the round's snapshot there; None between rounds
    round       how many are done
    version     of a VM that is off: as what it was read
    spoiled     the first round began anew: the volumes hold what the source does not any more
    disks.<id>  changes: change id of the last round that is done; pending: of this one
                done: bytes behind which this round has not come; flushed before it is noted

After a crash the round goes on where it was: with the same snapshot, behind `done`.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from holdfast.host.processes import Identity
from holdfast.operations.procedure import Job
from holdfast.spec.errors import HoldfastError
from holdfast.spec.units import MIB, format_size
from holdfast.spec.vm import Disk
from holdfast.storage.nbd import NbdWriter
from holdfast.storage.remote_disk import Area, Remaining, RemoteDisk, after
from holdfast.storage.volume_writing import volume_writer
from holdfast.storage.vsphere.refusals import ChangesUnknown, VsphereDiskUnreadable, VsphereLeaseLost
from holdfast.storage.vsphere.transfer import Patience
from holdfast.vm.owner import VmOwner
from holdfast.vm.rooms import Rooms

if TYPE_CHECKING:
    from holdfast.storage.vsphere.machine import Machine

log = structlog.get_logger(__name__)

_NOTE_BYTES = 64 * MIB
_NOTE_SECONDS = 2.0
_FRUITLESS = 2
"""Leases in a row of which nothing came, before it is given up."""
_AT_ONCE = 2
"""Disks of one VM copied at the same time."""


@dataclass
class Meter:
    """How far a round is, told with its rate and the time left."""

    job: Job
    what: str
    left: dict[str, int] = field(default_factory=dict)
    """Bytes that each disk had to bring at the beginning of this run."""
    done: int = 0
    brought: int = 0
    """Of `done`, what was no zeros that the source passed over."""
    began: float = field(default_factory=time.monotonic)

    def add(self, done: int, brought: int) -> None:
        self.done += done
        self.brought += brought
        total = sum(self.left.values())
        rate = self.done / max(time.monotonic() - self.began, 0.001)
        text = f"{self.what}: {format_size(self.done)} of {format_size(total)}"
        if rate >= MIB:
            text += f", {format_size(int(rate))}/s, {int((total - self.done) / rate)} s left"
        self.job.progress(self.done / total if total else 1.0, text)


def snapshot_prefix(job: Job) -> str:
    """With what the names of an operation's snapshots there begin."""
    return f"holdfast-{job.id[:8]}-"


class Rounds:
    """Copies for one operation. `machine` is its source, in a session that stays open meanwhile."""

    def __init__(
        self,
        rooms: Rooms,
        job: Job,
        owner: VmOwner,
        machine: "Machine",
        identity: Identity | None,
        patience: Patience,
    ) -> None:
        self._rooms = rooms
        self._job = job
        self._owner = owner
        self._machine = machine
        self._identity = identity
        self._patience = patience

    async def copy(self, what: str) -> int:
        """One round by a snapshot of its own; the bytes that it brought in this run."""
        snapshot = await self._begin()
        brought = await self._disks(snapshot, what)
        await self._end()
        return brought

    async def copy_off(self, what: str) -> int:
        """The only round, of a VM that is off; no snapshot is needed.

        It begins anew where the VM was started, or its settings changed, since an earlier run.
        """
        for disk in self._owner.record.spec.disks:
            self._note(disk)
        return await self._disks(None, what)

    def _note(self, disk: Disk) -> dict[str, Any]:
        notes = self._job.notes.setdefault("disks", {})
        found: dict[str, Any] = notes.setdefault(disk.id, {"changes": None, "pending": None, "done": 0})
        return found

    def _key(self, disk: Disk) -> int:
        return int(self._job.params["keys"][disk.id])

    async def clear(self) -> None:
        """Remove every snapshot that this operation took there."""
        from holdfast.storage.vsphere.session import asked

        await asked(self._machine.remove_snapshots, snapshot_prefix(self._job))

    async def _begin(self) -> str:
        """The snapshot of this round, made where a crash came before it was noted."""
        from holdfast.storage.vsphere.session import asked

        notes = self._job.notes
        held, prefix = notes.get("snapshot"), snapshot_prefix(self._job)
        if held and held in await asked(self._machine.snapshots, prefix):
            return str(held)
        if held:
            log.warning("the snapshot of a round is gone; it begins anew", operation=self._job.id)
            notes["spoiled"] = True
        await self.clear()
        name = f"{prefix}{notes.get('round', 0)}"
        snapshot = await asked(self._machine.take_snapshot, name)
        disks = await asked(self._machine.disks, snapshot)
        for disk in self._owner.record.spec.disks:
            there = disks.get(self._key(disk))
            self._note(disk).update(pending=there.change_id if there else None, done=0)
        notes["snapshot"] = snapshot
        await self._job.keep()
        return snapshot

    async def _end(self) -> None:
        notes = self._job.notes
        for disk in self._owner.record.spec.disks:
            note = self._note(disk)
            note.update(changes=note["pending"], pending=None, done=0)
        notes.update(snapshot=None, round=notes.get("round", 0) + 1)
        await self._job.keep()
        await self.clear()

    async def _settle(self) -> None:
        """Before a VM that is off is read: what an earlier run brought counts only of the same version."""
        from holdfast.storage.vsphere.session import asked

        notes = self._job.notes
        version = await asked(self._machine.version)
        if notes.get("version", version) != version:
            log.warning("the VM was changed there; its disks are brought anew", operation=self._job.id)
            notes["spoiled"] = True
            for disk in self._owner.record.spec.disks:
                self._note(disk).update(done=0)
        notes["version"] = version
        await self._job.keep()

    @property
    def _blank(self) -> bool:
        """The volumes hold nothing but what this very round brought."""
        return not self._job.notes.get("round") and not self._job.notes.get("spoiled")

    async def _disks(self, snapshot: str | None, what: str) -> int:
        """Goes on with a new lease where the server ended one, as long as something comes of it."""
        fruitless = 0
        while True:
            if snapshot is None:
                await self._settle()
            before = self._reached()
            try:
                return await self._copied(snapshot, what)
            except BaseExceptionGroup as failed:
                fruitless = 0 if self._reached() > before else fruitless + 1
                if failed.subgroup(VsphereLeaseLost) is None or fruitless > _FRUITLESS:
                    raise
                log.warning("an export was ended by the server", operation=self._job.id)

    def _reached(self) -> int:
        return sum(self._note(disk)["done"] for disk in self._owner.record.spec.disks)

    async def _copied(self, snapshot: str | None, what: str) -> int:
        from holdfast.storage.vsphere.remote import remote_disks

        meter, gate = Meter(self._job, what), asyncio.Semaphore(_AT_ONCE)
        async with remote_disks(self._machine, snapshot, self._patience) as remote:
            wanted: list[tuple[Disk, RemoteDisk, tuple[Area, ...]]] = []
            self._require_known(remote)
            for disk in self._owner.record.spec.disks:
                note, there = self._note(disk), remote.get(self._key(disk))
                if there is None or there.size > disk.size:
                    raise VsphereDiskUnreadable(
                        f"{disk.id} was removed or grew there since the import began",
                        value=disk.id,
                        cure="Import the VM again.",
                    )
                areas = after(await self._areas(note, there), note["done"])
                meter.left[disk.id] = sum(each.length for each in areas)
                if areas:
                    wanted.append((disk, there, areas))
            async with asyncio.TaskGroup() as group:
                for each in wanted:
                    group.create_task(self._gated(gate, meter, *each))
        return meter.brought

    def _require_known(self, remote: Mapping[int, RemoteDisk]) -> None:
        """Raises VsphereDiskUnreadable: a disk would be left behind."""
        strange = remote.keys() - {self._key(disk) for disk in self._owner.record.spec.disks}
        if strange:
            raise VsphereDiskUnreadable(
                f"the VM got another disk there since the import began: {min(strange)}",
                value=min(strange),
                cure="Import the VM again.",
            )

    async def _areas(self, note: dict[str, Any], remote: RemoteDisk) -> tuple[Area, ...]:
        if note["changes"] is None and not self._blank:
            return (Area(0, remote.size),)
        try:
            return await remote.areas(note["changes"])
        except ChangesUnknown as error:
            log.warning("a disk is read whole", operation=self._job.id, error=error.message)
            return (Area(0, remote.size),)

    async def _gated(
        self,
        gate: asyncio.Semaphore,
        meter: Meter,
        disk: Disk,
        remote: RemoteDisk,
        areas: tuple[Area, ...],
    ) -> None:
        async with gate:
            name = self._owner.record.name
            await self._rooms.volumes.released(name, [disk])  # by what a killed daemon left behind
            await self._rooms.volumes.grant(name, disk, self._identity)  # which a restarted host forgot
            async with volume_writer(
                self._rooms.processes,
                self._rooms.volumes.chain(name, disk)[0],
                self._rooms.state.runtime,
                owner=f"operation:{self._job.id}",
                identity=self._identity,
            ) as writer:
                copying = Copying(self._job, self._note(disk), writer, meter)
                await copying.run(remote, areas, blank=self._blank)


class Copying:
    """One disk in one round."""

    def __init__(self, job: Job, note: dict[str, Any], writer: NbdWriter, meter: Meter) -> None:
        self._job = job
        self._note = note
        self._writer = writer
        self._meter = meter
        self._position = 0
        self._unnoted = 0
        self._noted_at = time.monotonic()

    async def run(self, remote: RemoteDisk, areas: tuple[Area, ...], blank: bool) -> None:
        """`blank`: the volume holds nothing yet, so zeros need not be written."""
        remaining = Remaining(areas)
        try:
            async with contextlib.aclosing(remote.read(areas)) as pieces:
                async for piece in pieces:
                    await self._pass_over(remaining.take(piece.offset), blank)
                    await self._writer.write(piece.offset, piece.data)
                    end = piece.offset + len(piece.data)
                    await self._passed(end, remaining.take(end), len(piece.data))
            await self._pass_over(remaining.take(remote.size), blank)
        finally:
            with contextlib.suppress(HoldfastError):
                await asyncio.shield(self._keep())
        self._note["done"] = remote.size
        await self._keep()

    async def _pass_over(self, areas: list[Area], blank: bool) -> None:
        """What the source left out holds zeros there."""
        for area in areas:
            if not blank:
                await self._writer.zero(area.start, area.length)
            self._meter.add(area.length, 0)

    async def _passed(self, end: int, areas: list[Area], brought: int) -> None:
        self._position = end
        self._unnoted += brought
        self._meter.add(sum(each.length for each in areas), brought)
        if self._unnoted >= _NOTE_BYTES or time.monotonic() - self._noted_at >= _NOTE_SECONDS:
            await self._keep()

    async def _keep(self) -> None:
        """Durable there first, then noted."""
        await self._writer.flush()
        self._note["done"] = max(self._note["done"], self._position)
        await self._job.keep()
        self._unnoted, self._noted_at = 0, time.monotonic()
