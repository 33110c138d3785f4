"""One replication: its VM's cycles, one after another, for as long as it is enabled.

    VM runs ▶ attach ▶ connect: what the receiver holds ▶ (capture ▶ ship ▶ commit) ... until something fails
              ▲                                                                                  │
              └────────────────────── back-off ◀── give up: its changes are the next cycle's ◀───┘

Nothing that matters is remembered here: what changed is in QEMU's maps, what is held the receiver says.
Cycles are numbered by the milliseconds since 1970 at which they began, so that numbers rise whatever was
forgotten.
"""

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from holdfast.catalog.events import EventLog
from holdfast.machine.running import RunningMachine
from holdfast.replication.attachments import Attachments, Beside, SentVm
from holdfast.replication.capture import Capture
from holdfast.replication.dispatch import Dispatch
from holdfast.replication.figures import CycleDone, ReplicationFigures
from holdfast.replication.identity import Identity
from holdfast.replication.link import Address
from holdfast.replication.pairing import PeerBook
from holdfast.replication.progress import Fault, Progress
from holdfast.replication.replication_records import Replication, ReplicationBook
from holdfast.replication.shipping import Shipped
from holdfast.replication.wire import DiskShape, Open, Standing
from holdfast.spec.errors import Conflict, HoldfastError
from holdfast.spec.vm import VmSpec

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


class Sender:
    """Sends one VM. `look` gives it as it is now."""

    def __init__(self, replication: Replication, means: Means, look: Callable[[], Vm]) -> None:
        self.replication = replication
        self.progress = Progress()
        self.figures = ReplicationFigures(replication.settings.rpo_seconds, time.monotonic())
        self._means = means
        self._look = look
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
        self._all_sent = False
        """With that cycle."""

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
        self.figures = ReplicationFigures(self.replication.settings.rpo_seconds, at)
        if newest is not None:
            self.figures.done(newest)

    async def last(self, machine: RunningMachine) -> None:
        """The machine is about to end: send what changed last, and keep its maps for the next one.

        `run` must have ended. Raises HoldfastError and OSError where the maps are not kept.
        """
        self._ending, self._all_sent = machine, False
        vm = replace(self._look(), machine=machine)
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._cycle(vm, machine)
            self._all_sent = True
        except (HoldfastError, OSError) as error:  # TimeoutError is one, too
            await self._failed(error)
        carried = await self._capture(vm, machine).carry()
        self.replication = await self._means.book.carry(vm.id, carried)

    async def forget(self) -> None:
        """Replication is over: the machine keeps no maps. `run` must have ended."""
        vm = self._look()
        if vm.machine is not None:
            await self._capture(vm, vm.machine).forget()

    async def _turn(self) -> float | None:
        """One try; returns the seconds until the next, None: until something is told."""
        vm = self._look()
        if vm.machine is None or vm.machine is self._ending:
            self._machine = None
            return await self._rested(vm) if vm.machine is None else None
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

    async def _rested(self, vm: Vm) -> float | None:
        """The VM is off. Where all of it is over there and nobody changed it, that is current as of now."""
        digest = hashlib.sha256(vm.spec.model_dump_json().encode()).hexdigest()
        if self._all_sent:
            self._all_sent = False
            self.replication = await self._means.book.rest(vm.id, digest)
        if self.replication.at_rest != digest:
            return None
        now = time.monotonic()
        self.figures.waiting(now, 0)
        self.figures.done(CycleDone(now, now, 0))
        return min(_LATEST, self.replication.settings.rpo_seconds / 2)

    async def _cycle(self, vm: Vm, machine: RunningMachine) -> None:
        capture = self._capture(vm, machine)
        if self._machine is not machine:
            carried = self.replication.carried
            if carried is not None or self.replication.at_rest:
                self.replication = await self._means.book.carry(vm.id, None)
            await capture.attach(carried)
            self._machine = machine
        looked = time.monotonic()
        pending = await capture.pending()
        self.figures.waiting(looked, sum(pending.values()))
        since = await capture.since()
        disks = self._disks(vm, since)
        mapped = all(since[disk] is not None for disk in disks)
        if self._standing is None:
            self._standing = await self._connect(vm)
        standing = self._standing
        made = self._means.attachments
        failover = self.replication.settings.failover
        beside = await made.look(SentVm(id=vm.id, name=vm.name, spec=vm.spec, failover=failover), vm.folder)
        if mapped and self._is_current(standing, disks, pending, beside):
            self.figures.done(CycleDone(looked, time.monotonic(), 0))
            return
        whole = standing.compare or not standing.cycle
        known = None if whole else self._attached
        attachments = await made.sealed(beside, known, vm.folder, self._certificate)
        self._last = max(int(time.time() * 1000), self._last + 1, standing.cycle + 1)
        since = await capture.since()
        self.progress.comparing = standing.compare or (not whole and any(since[d] is None for d in disks))
        self.progress.initial = whole and not standing.compare
        begun = time.monotonic()
        captured = await capture.begin(self._last, disks, standing.cycle)
        taken = time.monotonic() - max(0.0, time.time() - captured.taken)
        try:
            await made.require_same(beside, vm.folder)
            shipped = await self._link.ship(
                captured,
                standing.cycle,
                attachments,
                compared=standing.compare,
                told=self.progress.moved,
            )
        except BaseException:
            await asyncio.shield(capture.give_up())
            raise
        self._standing = Standing(cycle=captured.cycle, disks=standing.disks, points=shipped.points)
        self._attached = beside
        self._sent_at = time.monotonic()
        self._latency = self._sent_at - begun
        self.figures.done(CycleDone(taken, self._sent_at, shipped.written + shipped.zeroed))
        self.progress.arrived(shipped)
        self.progress.newest = captured.cycle
        await self._record(shipped)
        await capture.commit(captured.cycle)

    async def _record(self, shipped: Shipped) -> None:
        if shipped.compared:
            data = {"peer": self.replication.peer, "compared": shipped.compared, "sent": shipped.sent}
            await self._means.events.emit("replica.compared", self._look().name, data)
        if shipped.full or not self.replication.initial:
            self.replication = await self._means.book.arrived(self.replication.vm, full=shipped.full)

    def _is_current(
        self, standing: Standing, disks: tuple[str, ...], pending: dict[str, int], beside: Beside
    ) -> bool:
        """Nothing changed since the last cycle: what is held is what there is, as of now."""
        quiet = all(pending.get(disk) == 0 for disk in disks)
        known = standing.cycle and not standing.compare and beside == self._attached
        return quiet and bool(known) and time.monotonic() - self._sent_at < _SILENT

    async def _connect(self, vm: Vm) -> Standing:
        peer = await self._means.peers.get(self.replication.peer)
        settings = self.replication.settings
        opened = Open(
            replication=self.replication.id,
            vm=vm.id,
            name=vm.name,
            disks=tuple(
                DiskShape(id=disk.id, size=disk.size) for disk in vm.spec.disks if disk.id in self._wanted(vm)
            ),
            points=settings.points,
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
        self._attached = None
        self._certificate, self.fingerprint = peer.certificate, peer.fingerprint
        self.progress.connected = True
        self.progress.points, self.progress.lost = standing.points, standing.lost
        self.progress.newest = standing.cycle
        if standing.cycle and self.figures.now(time.monotonic()).rpo_seconds is None:
            # What an earlier daemon sent: its number is its time.
            age = max(0.0, time.time() - standing.cycle / 1000)
            now = time.monotonic()
            self.figures.done(CycleDone(now - age, now, 0))
        return standing

    def _wanted(self, vm: Vm) -> tuple[str, ...]:
        return tuple(each.id for each in vm.spec.disks if each.id not in self.replication.settings.exclude)

    def _disks(self, vm: Vm, known: dict[str, int | None]) -> tuple[str, ...]:
        found = tuple(disk for disk in self._wanted(vm) if disk in known)
        if not found:
            raise NothingToReplicate(
                f"VM {vm.name!r} has no disks to replicate", value=vm.name, cure="Add a disk, or disable it."
            )
        return found

    @staticmethod
    def _capture(vm: Vm, machine: RunningMachine) -> Capture:
        return Capture(machine, vm.runtime / _SOCKET, vm.folder)

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
