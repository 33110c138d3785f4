"""One replication: its VM's cycles, one after another, for as long as it is enabled.

    VM runs ▶ attach ▶ connect: what the receiver holds ▶ (capture ▶ ship ▶ commit) ... until something fails
              ▲                                                                                  │
              └────────────────────── back-off ◀── give up: its changes are the next cycle's ◀───┘
    VM rests ▶ all of it over there: current as of now     else: connect ▶ read its disks ▶ ship

Nothing that matters is remembered here: what changed is in QEMU's maps, what is held the receiver says.
Cycles are numbered by the milliseconds since 1970 at which they began, so that numbers rise whatever was
forgotten.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import structlog

from holdfast.machine.disk_snapshot import DisksChanging
from holdfast.machine.running import RunningMachine
from holdfast.replication.attachments import Beside, SentVm
from holdfast.replication.capture import Capture, Captured, tag_of
from holdfast.replication.consistent import ConsistentCycles
from holdfast.replication.figures import CycleDone
from holdfast.replication.replicating import Means, Replicator
from holdfast.replication.replication_records import Replication
from holdfast.replication.resting import RestingCapture, digest_of
from holdfast.replication.turns import FIRST_TERM
from holdfast.replication.wire import DiskShape, Standing
from holdfast.spec.errors import Conflict, HoldfastError
from holdfast.spec.vm import VmSpec
from holdfast.vm.quiesce import Quiesce
from holdfast.vm.records import VmRecord
from holdfast.vm.rest import Rest, VmNotAtRest

log = structlog.get_logger(__name__)

_SOCKET = "replica.sock"
_SOONEST, _LATEST = 0.5, 30.0
"""Seconds after which what failed is tried again: the first time, and at most."""
_SILENT = 10.0
"""Seconds after which a cycle is sent though nothing changed: it shows that the receiver is there."""
_LAST_SECONDS = 5.0
"""That a VM which is being stopped waits for what changed last to be sent."""
_SHORTEST = 0.05
"""Seconds between the begins of two cycles."""
_OTHERS = 5.0
"""Seconds after which a VM at rest on which somebody acts is looked at again."""
_GIVES_WAY = 60.0
"""Seconds for which a cycle that has to wait for others who want the disks is none that failed."""
_ASKED = 60.0
"""Seconds after which it is asked again what is held of a VM at rest."""


class NothingToReplicate(Conflict):
    id = "replica-no-disks"


@dataclass(frozen=True)
class Vm:
    """A VM as it is now."""

    id: str
    name: str
    spec: VmSpec
    """What its machine has, where there is one."""
    machine: RunningMachine | None
    """None: it does not run."""
    runtime: Path
    """Short folder for sockets."""
    folder: Path
    started: datetime | None
    """When it was started last."""
    rest: Rest
    quiesce: Quiesce
    failed: bool = False
    """Its machine ended by itself."""


class Sender(Replicator):
    """Sends one VM. `look` gives it as it is now."""

    def __init__(self, replication: Replication, means: Means, look: Callable[[], Vm]) -> None:
        super().__init__(replication, means)
        self._look = look
        self._tag = tag_of(replication.id)
        self._resting = RestingCapture(means.resting, self._tag)
        self._machine: RunningMachine | None = None
        """The one whose maps were looked at."""
        self._last = 0
        """Number of the last cycle that was begun."""
        self._latency = 0.0
        self._attached: Beside | None = None
        """What the receiver has for certain beside disks."""
        self._ending: RunningMachine | None = None
        """One that has sent its last cycle."""
        self._all_sent = 0
        """The cycle by which all of it was; 0: it was not, or that is recorded."""
        self._consistent = ConsistentCycles(means.book, self.progress)
        self._gave_way: float | None = None
        """When a cycle first gave way to others that want the disks; None: none did."""

    @property
    def name(self) -> str:
        return self._look().name

    @property
    def runs(self) -> bool:
        return self._look().machine is not None

    @property
    def machine_failed(self) -> bool:
        return self._look().failed

    @property
    def rests_unsent(self) -> bool:
        rests = not self.runs and not self.fenced
        return rests and self.replication.initial and not self.replication.at_rest

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            self._consistent.close()

    async def last(self, machine: RunningMachine) -> None:
        self._ending, self._all_sent = machine, 0
        vm = replace(self._look(), machine=machine)
        if self._held_back() > 0:
            await self._wait(vm, 0.0)
        else:
            await self._send_last(vm, machine)
        carried = await self._capture(vm, machine).carry()
        self.replication = await self._means.book.carry(self.replication, carried)

    async def _send_last(self, vm: Vm, machine: RunningMachine) -> None:
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._cycle(vm, machine)
            self._all_sent = self._standing.cycle if self._standing else 0
        except (HoldfastError, OSError) as error:  # TimeoutError is one, too
            await self._failed(error)

    async def forget(self) -> None:
        """Also the machine keeps no maps."""
        vm = self._look()
        if vm.machine is not None:
            if self.replication.freezing:
                await vm.quiesce.thaw()
            await self._capture(vm, vm.machine).forget()

    async def _turn(self) -> float | None:
        vm = self._look()
        if vm.machine is self._ending and vm.machine is not None:
            self._machine = None
            return None
        if vm.machine is not None:
            self._consistent.let_go(self, vm.quiesce)
        if (held_back := self._held_back()) > 0:
            return await self._wait(vm, held_back)
        if self._changed:
            self._changed, self._standing = False, None  # the receiver is told when it is connected
        if vm.machine is None:
            self._machine = None
            return await self._rested(vm)
        begun = time.monotonic()
        try:
            await self._cycle(vm, vm.machine)
        except (HoldfastError, OSError) as error:
            if self._look().machine is not vm.machine:
                self._link.close()  # in the midst of a cycle
                self._standing = None
                return 0.0
            if self._gives_way(vm.machine, error):
                return _SOONEST
            await self._failed(error)
            return self._backed_off()
        await self._went_well()
        wanted = 0.9 * self.replication.settings.rpo_seconds - 1.5 * self._latency
        return max(_SHORTEST, begun + wanted - time.monotonic())

    def _gives_way(self, machine: RunningMachine, error: HoldfastError | OSError) -> bool:
        """Whether a cycle waits for others that want the disks, such as a checkpoint, and has not failed."""
        now = time.monotonic()
        if not (isinstance(error, DisksChanging) or machine.snapshot.is_barred):
            self._gave_way = None
            return False
        self._gave_way = self._gave_way or now
        if now - self._gave_way > _GIVES_WAY:
            return False
        self._link.close()
        self._standing = self._machine = None
        self.progress.gives_way()
        return True

    async def _wait(self, vm: Vm, seconds: float) -> float:
        """Nothing is sent for so long; what the guest writes is entered in its maps all the same."""
        self._disconnect()
        if vm.machine is None:
            self._machine = None
        else:
            try:
                capture = self._capture(vm, vm.machine)
                await self._attach(capture, vm.machine)
                self.figures.waiting(time.monotonic(), sum((await capture.pending()).values()))
            except (HoldfastError, OSError) as error:
                self._machine = None
                log.info("the maps of a VM were not looked at", vm=vm.id, error=str(error))
        return max(_SHORTEST, min(seconds, _ASKED))

    async def _rested(self, vm: Vm) -> float | None:
        """The VM is off. Where all of it is over there and nobody changed it, that is current as of now.

        A device of the host's is opened for machines only; such a VM is read once it runs.
        """
        if any(disk.device for disk in vm.spec.disks if disk.id in self._wanted(vm)):
            return None
        try:
            digest, cycle = self._digest(vm), self._all_sent
            if cycle:
                self.replication = await self._means.book.rest(self.replication, digest, cycle)
                self._all_sent = 0
            if time.monotonic() - self._asked > _ASKED:
                self._standing = None
            standing = self._standing = self._standing or await self._connect(vm)
            rests = self.replication.at_rest == digest and self.replication.rest_cycle == standing.cycle
            if not rests or standing.compare:
                await vm.rest.while_at_rest(lambda record: self._read(vm, record))
            elif self.replication.carried is None:
                await vm.rest.while_at_rest(lambda record: self._plant(vm, record))
        except VmNotAtRest:
            self._link.close()
            self._standing = None
            self.progress.comparing = self.progress.initial = False
            return _OTHERS
        except (HoldfastError, OSError) as error:
            await self._failed(error)
            return self._backed_off()
        await self._went_well()
        now = time.monotonic()
        self.figures.waiting(now, 0)
        self.figures.done(CycleDone(now, now, 0))
        return min(_LATEST, self.replication.settings.rpo_seconds / 2)

    def _digest(self, vm: Vm) -> str:
        return digest_of(vm.spec, vm.started, self.replication.settings.exclude)

    async def _read(self, vm: Vm, record: VmRecord) -> None:
        """All of a VM that rests is sent, as far as it is not there."""
        vm = replace(vm, name=record.name, spec=record.spec, started=record.started)
        standing = self._standing or await self._connect(vm)
        beside = await self._look_beside(vm)
        disks = self._require_disks(vm, self._wanted(vm))
        attachments = await self._sealed(vm, beside, standing)
        number = self._next(standing)
        carried = self.replication.carried
        self.progress.initial = not standing.compare and not standing.cycle
        async with self._resting.captured(record, number, disks, standing, carried) as captured:
            known = all(each.since is not None for each in captured.disks)
            self.progress.comparing = not known and not self.progress.initial
            await self._ship(vm, captured, beside, attachments)
        self.replication = await self._means.book.rest(self.replication, self._digest(vm), number)
        await self._plant(vm, record)

    async def _plant(self, vm: Vm, record: VmRecord) -> None:
        standing, disks = self._standing, self._wanted(vm)
        if standing is None:
            return
        try:
            planted = await self._resting.plant(record, disks, standing.cycle)
        except (HoldfastError, OSError) as error:
            log.info("a VM at rest got no maps of changes", vm=vm.id, error=str(error))
            return  # another one reads its disks, say: then both sides are compared at its start
        self.replication = await self._means.book.planted(self.replication, planted)

    async def _cycle(self, vm: Vm, machine: RunningMachine) -> None:
        capture = self._capture(vm, machine)
        await self._attach(capture, machine)
        ends = machine is self._ending  # its guest, and its owner, do nothing any more
        looked = time.monotonic()
        known = await capture.known()
        since = {disk: each for disk, (each, _) in known.items()}
        pending = {disk: each for disk, (_, each) in known.items()}
        self.figures.waiting(looked, sum(pending.values()))
        disks = self._require_disks(vm, tuple(each for each in self._wanted(vm) if each in since))
        mapped = all(since[disk] is not None for disk in disks)
        standing = self._standing = self._standing or await self._connect(vm)
        beside = await self._look_beside(vm)
        due = not ends and self._consistent.due(self.replication)
        if mapped and not due and self._is_current(standing, disks, pending, beside):
            self.figures.done(CycleDone(looked, time.monotonic(), 0))
            return
        whole = standing.compare or not standing.cycle
        attachments = await self._sealed(vm, beside, standing)
        self.progress.comparing = standing.compare or (not whole and any(since[d] is None for d in disks))
        self.progress.initial = whole and not standing.compare
        await self._write_out(vm, disks)
        begun, held = time.monotonic(), {each.id for each in standing.disks}
        begin = functools.partial(capture.begin, self._next(standing), disks, standing.cycle, held)
        captured = await self._consistent.begin(self, vm.quiesce, begin) if due else await begin()
        try:
            await self._ship(vm, captured, beside, attachments)
        except BaseException:
            await asyncio.shield(capture.give_up())
            raise
        self._latency = time.monotonic() - begun
        self._consistent.arrived(captured.consistency)
        await self._write_out(vm, disks)
        await capture.commit(captured.cycle)

    async def _write_out(self, vm: Vm, disks: tuple[str, ...]) -> None:
        """Next QEMU does so itself, for which the guest waits."""
        await self._means.writing.write_out(vm.name, (each for each in vm.spec.disks if each.id in disks))

    async def _attach(self, capture: Capture, machine: RunningMachine) -> None:
        if self._machine is not machine:
            carried = self.replication.carried
            if carried is not None or self.replication.at_rest:
                self.replication = await self._means.book.carry(self.replication, None)
            await capture.attach(carried)
            self._machine = machine

    def _next(self, standing: Standing) -> int:
        self._last = max(int(time.time() * 1000), self._last + 1, standing.cycle + 1)
        return self._last

    async def _look_beside(self, vm: Vm) -> Beside:
        sent = SentVm(id=vm.id, name=vm.name, spec=vm.spec, failover=self.replication.settings.failover)
        return await self._means.attachments.look(sent, vm.folder)

    async def _sealed(self, vm: Vm, beside: Beside, standing: Standing) -> dict[str, bytes]:
        """What the receiver lacks beside disks."""
        known = self._attached if standing.cycle and not standing.compare else None
        return await self._means.attachments.sealed(beside, known, vm.folder, self._certificate)

    async def _ship(
        self, vm: Vm, captured: Captured, beside: Beside, attachments: Mapping[str, bytes]
    ) -> None:
        await self._means.attachments.require_same(beside, vm.folder)
        await self._shipped(captured, attachments)
        self._attached = beside

    def _is_current(
        self, standing: Standing, disks: tuple[str, ...], pending: dict[str, int], beside: Beside
    ) -> bool:
        """Nothing changed since the last cycle: what is held is what there is, as of now."""
        quiet = all(pending.get(disk) == 0 for disk in disks)
        known = standing.cycle and not standing.compare and beside == self._attached
        return quiet and bool(known) and time.monotonic() - self._sent_at < _SILENT

    async def _connect(self, vm: Vm) -> Standing:
        wanted, turns = self._wanted(vm), self._means.turns
        disks = tuple(DiskShape(id=disk.id, size=disk.size) for disk in vm.spec.disks if disk.id in wanted)
        standing = await self._connected(
            self._open(vm.name, disks, turns.own_term(vm.id) if turns else FIRST_TERM)
        )
        self._attached = None
        return standing

    async def _failed(self, error: HoldfastError | OSError) -> None:
        self._machine = None
        await super()._failed(error)

    def _wanted(self, vm: Vm) -> tuple[str, ...]:
        return tuple(each.id for each in vm.spec.disks if each.id not in self.replication.settings.exclude)

    @staticmethod
    def _require_disks(vm: Vm, found: tuple[str, ...]) -> tuple[str, ...]:
        if not found:
            raise NothingToReplicate(
                f"VM {vm.name!r} has no disks to replicate", value=vm.name, cure="Add a disk, or disable it."
            )
        return found

    def _capture(self, vm: Vm, machine: RunningMachine) -> Capture:
        return Capture(machine, self._tag, vm.runtime / _SOCKET, vm.folder)

    async def _went_well(self) -> None:
        self._gave_way = None
        await super()._went_well()
