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
import contextlib
import functools
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import structlog

from holdfast.catalog.events import EventLog
from holdfast.machine.running import RunningMachine
from holdfast.replication.attachments import Attachments, Beside, SentVm
from holdfast.replication.capture import Capture, Captured, tag_of
from holdfast.replication.consistent import ConsistentCycles
from holdfast.replication.dispatch import Dispatch
from holdfast.replication.figures import CycleDone, ReplicationFigures
from holdfast.replication.identity import Identity
from holdfast.replication.link import Address
from holdfast.replication.pairing import PeerBook
from holdfast.replication.progress import Fault, Progress
from holdfast.replication.replication_records import Replication, ReplicationBook
from holdfast.replication.resting import RestingCapture, digest_of
from holdfast.replication.schedule import initial_from, parse_schedule
from holdfast.replication.shipping import Shipped
from holdfast.replication.turns import FIRST_TERM, TurnBook
from holdfast.replication.wire import DiskShape, Open, Standing
from holdfast.spec.errors import Conflict, HoldfastError
from holdfast.spec.turn import Turn
from holdfast.spec.vm import VmSpec
from holdfast.vm.quiesce import Quiesce
from holdfast.vm.records import VmRecord
from holdfast.vm.rest import Rest, VmNotAtRest
from holdfast.vm.resting_disks import RestingVms

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


@dataclass(frozen=True)
class Means:
    """What all replications of this host send by."""

    identity: Identity
    name: str
    """What this host calls itself."""
    peers: PeerBook
    book: ReplicationBook
    dispatch: Dispatch
    attachments: Attachments
    events: EventLog
    resting: RestingVms
    turns: TurnBook | None = None
    receives: Callable[[], Address | None] = lambda: None
    """Where this host takes replicas, without a host where each of its addresses will do; None: nowhere."""


class Sender:
    """Sends one VM. `look` gives it as it is now."""

    def __init__(self, replication: Replication, means: Means, look: Callable[[], Vm]) -> None:
        self.replication = replication
        self.progress = Progress()
        self.figures = ReplicationFigures(self.target, time.monotonic())
        self._means = means
        self._look = look
        self._tag = tag_of(replication.id)
        self._resting = RestingCapture(means.resting, self._tag)
        self._link = means.dispatch.link()
        self._standing: Standing | None = None
        self._machine: RunningMachine | None = None
        """The one whose maps were looked at."""
        self._last = 0
        """Number of the last cycle that was begun."""
        self._sent_at = 0.0
        self._latency = 0.0
        self._delay = _SOONEST
        self._attached: Beside | None = None
        """What the receiver has for certain beside disks."""
        self._certificate = ""
        """The receiver's."""
        self.fingerprint = ""
        """Of it."""
        self._wake = asyncio.Event()
        self._ending: RunningMachine | None = None
        """One that has sent its last cycle."""
        self._all_sent = 0
        """The cycle by which all of it was; 0: it was not, or that is recorded."""
        self._consistent = ConsistentCycles(means.book, self.progress)
        self._changed = False
        """Settings, since the receiver was told of them."""
        self._asked = 0.0
        """When the receiver last said what it holds."""

    @property
    def fenced(self) -> bool:
        """Whether the VM has failed over to another host, which sends it from now on."""
        known = self._means.turns.known(self.replication.vm) if self._means.turns else None
        return known is not None and known.turn in (Turn.FENCED, Turn.ADOPTING)

    def wake(self) -> None:
        """The VM may have started or ended."""
        self._wake.set()

    @property
    def vm(self) -> Vm:
        """As it is now."""
        return self._look()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                self._wake.clear()
                self.progress.begins()
                wait = await self._turn()
                self.progress.waits(wait)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
        finally:
            self._link.close()

    def measure_anew(self) -> None:
        """Forget the figures; the newest point stays known."""
        at = time.monotonic()
        newest = self.figures.newest
        self.figures = ReplicationFigures(self.target, at)
        if newest is not None:
            self.figures.done(newest)

    async def last(self, machine: RunningMachine) -> None:
        """The machine is about to end: send what changed last, and keep its maps for the next one.

        `run` must have ended. Raises HoldfastError and OSError where the maps are not kept.
        """
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
        """Replication is over: the machine keeps no maps. `run` must have ended."""
        vm = self._look()
        if vm.machine is not None:
            await self._capture(vm, vm.machine).forget()

    async def _turn(self) -> float | None:
        """One try; returns the seconds until the next, None: until something is told."""
        vm = self._look()
        if vm.machine is self._ending and vm.machine is not None:
            self._machine = None
            return None
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
            await self._failed(error)
            return self._backed_off()
        await self._went_well()
        wanted = 0.9 * self.replication.settings.rpo_seconds - 1.5 * self._latency
        return max(_SHORTEST, begun + wanted - time.monotonic())

    def _held_back(self) -> float:
        """Seconds for which nothing is to be sent; 0: a cycle may begin."""
        if self.replication.paused or self.fenced:
            return math.inf
        settings, now = self.replication.settings, datetime.now()
        wait = parse_schedule(settings.schedule).opens_in(now)
        if not self.replication.initial:
            enabled = self.replication.enabled.astimezone().replace(tzinfo=None)
            wait = max(wait, (initial_from(settings.initial, enabled) - now).total_seconds())
        return wait

    async def _wait(self, vm: Vm, seconds: float) -> float:
        """Nothing is sent for so long; what the guest writes is entered in its maps all the same."""
        if self._standing is not None:
            self._link.close()
            self._standing, self.progress.connected = None, False
        self.progress.went_well()
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

    def changed(self, replication: Replication) -> None:
        """Its settings are others, or it was paused or resumed; takes hold with the next cycle.

        What it may send, and its priority, hold at once. `run` must have ended where it was paused.
        """
        self.replication, self._changed = replication, True
        self.figures.aim(self.target)
        self._link.tune(replication.settings.priority, replication.settings.limit)
        self.wake()

    @property
    def target(self) -> float:
        """Seconds that the newest point may be old, while its schedule lets nothing pass, too."""
        settings = self.replication.settings
        return settings.rpo_seconds + parse_schedule(settings.schedule).longest_gap()

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
        if not ends:
            await self._consistent.let_go(self, vm.quiesce)
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
        await capture.commit(captured.cycle)

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
        """Send a cycle, which changes what the receiver said that it holds, and count it."""
        standing = self._standing or Standing(cycle=0)
        taken = time.monotonic() - max(0.0, time.time() - captured.taken)
        await self._means.attachments.require_same(beside, vm.folder)
        shipped = await self._link.ship(
            captured, standing.cycle, attachments, compared=standing.compare, told=self.progress.moved
        )
        shapes = tuple(DiskShape(id=disk.id, size=disk.size) for disk in captured.disks)
        self._standing = Standing(cycle=captured.cycle, disks=shapes, points=shipped.points)
        self._attached = beside
        self._sent_at = self._asked = time.monotonic()
        self.figures.done(CycleDone(taken, self._sent_at, shipped.written + shipped.zeroed))
        self.progress.arrived(shipped)
        self.progress.newest = captured.cycle
        await self._record(shipped)

    async def _record(self, shipped: Shipped) -> None:
        if shipped.compared:
            data = {"peer": self.replication.peer, "compared": shipped.compared, "sent": shipped.sent}
            await self._means.events.emit("replica.compared", self._look().name, data)
        if shipped.full or not self.replication.initial:
            self.replication = await self._means.book.arrived(self.replication, full=shipped.full)

    def _is_current(
        self, standing: Standing, disks: tuple[str, ...], pending: dict[str, int], beside: Beside
    ) -> bool:
        """Nothing changed since the last cycle: what is held is what there is, as of now."""
        quiet = all(pending.get(disk) == 0 for disk in disks)
        known = standing.cycle and not standing.compare and beside == self._attached
        return quiet and bool(known) and time.monotonic() - self._sent_at < _SILENT

    async def _connect(self, vm: Vm) -> Standing:
        peer = await self._means.peers.get(self.replication.peer)
        settings, receives = self.replication.settings, self._means.receives()
        opened = Open(
            replication=self.replication.id,
            vm=vm.id,
            name=vm.name,
            disks=tuple(
                DiskShape(id=disk.id, size=disk.size) for disk in vm.spec.disks if disk.id in self._wanted(vm)
            ),
            points=settings.points,
            term=self._means.turns.own_term(vm.id) if self._means.turns else FIRST_TERM,
            receives=receives.port if receives else 0,
            receives_at=receives.host if receives else "",
            agreed=settings.agreed,
        )
        standing = await self._link.connect(
            Address(host=peer.host or "", port=peer.port or 0),
            self._means.identity,
            peer.fingerprint,
            self._means.name,
            opened,
            priority=settings.priority,
            limit=settings.limit,
        )
        self._attached, self._asked = None, time.monotonic()
        self._certificate, self.fingerprint = peer.certificate, peer.fingerprint
        self.progress.connected = True
        self.progress.points, self.progress.lost = standing.points, standing.lost
        self.progress.newest, self.progress.tested_us = standing.cycle, standing.tested_us
        if standing.cycle and self.figures.now(time.monotonic()).rpo_seconds is None:
            # What an earlier daemon sent: its number is its time.
            age = max(0.0, time.time() - standing.cycle / 1000)
            now = time.monotonic()
            self.figures.done(CycleDone(now - age, now, 0))
        return standing

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

    async def _failed(self, error: HoldfastError | OSError) -> None:
        """Everything is found out anew: the link may be lost, the receiver may hold more or less."""
        now = time.monotonic()
        self._link.close()
        self._standing = self._machine = None
        self.figures.failed(now)
        fault = Fault.of(error)
        if self.progress.failed(fault):
            data = {"peer": self.replication.peer, "id": fault.id, "error": fault.message}
            await self._means.events.emit("replica.failing", self._look().name, data)
            log.warning(
                "a cycle of replication failed", vm=self.replication.vm, error=fault.message, id=fault.id
            )

    async def _went_well(self) -> None:
        self._delay = _SOONEST
        seconds = self.progress.went_well()
        if seconds is not None:
            data = {"peer": self.replication.peer, "after_seconds": round(seconds, 1)}
            await self._means.events.emit("replica.resumed", self._look().name, data)

    def _backed_off(self) -> float:
        delay, self._delay = self._delay, min(2 * self._delay, _LATEST)
        return delay * random.uniform(0.8, 1.2)  # noqa: S311  (so that not all come back at once)
