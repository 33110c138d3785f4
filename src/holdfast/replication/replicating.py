"""What all senders of one replication do, whatever their cycles are made from: its link, figures, back-off.

    try ▶ connect: what the receiver holds ▶ a cycle, shipped ▶ ... until something fails
     ▲                                                                     │
     └──────────────────────────────── back-off ◀──────────────────────────┘

`sending.Sender` sends a VM of this host, `relaying.Relay` a replica that this host holds.
"""

import asyncio
import contextlib
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from holdfast.catalog.events import EventLog
from holdfast.machine.running import RunningMachine
from holdfast.replication.attachments import Attachments
from holdfast.replication.capture import Captured
from holdfast.replication.dispatch import Dispatch
from holdfast.replication.figures import CycleDone, Figures, ReplicationFigures
from holdfast.replication.identity import Identity
from holdfast.replication.link import Address
from holdfast.replication.pairing import PeerBook
from holdfast.replication.progress import Fault, Progress
from holdfast.replication.replication_records import Replication, ReplicationBook
from holdfast.replication.schedule import initial_from, parse_schedule
from holdfast.replication.shipping import Shipped
from holdfast.replication.turns import TurnBook
from holdfast.replication.wire import DiskShape, Open, Standing
from holdfast.replication.writing_out import WritingOut
from holdfast.spec.errors import HoldfastError
from holdfast.spec.turn import Turn
from holdfast.vm.resting_disks import RestingVms

log = structlog.get_logger(__name__)

_SOONEST, _LATEST = 0.5, 30.0
"""Seconds after which what failed is tried again: the first time, and at most."""


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
    writing: WritingOut = field(default_factory=WritingOut)


class Replicator(ABC):
    def __init__(self, replication: Replication, means: Means) -> None:
        self.replication = replication
        self.progress = Progress()
        self.figures = ReplicationFigures(self.target, time.monotonic())
        self._means = means
        self._link = means.dispatch.link()
        self._standing: Standing | None = None
        self._delay = _SOONEST
        self._certificate = ""
        """The receiver's."""
        self.fingerprint = ""
        """Of it."""
        self._wake = asyncio.Event()
        self._changed = False
        """Settings, since the receiver was told of them."""
        self._asked = 0.0
        """When the receiver last said what it holds."""
        self._sent_at = 0.0

    @property
    @abstractmethod
    def name(self) -> str:
        """Of what is sent, as people on this host know it."""

    @property
    @abstractmethod
    def runs(self) -> bool:
        """Whether the VM runs on this host."""

    @property
    @abstractmethod
    def machine_failed(self) -> bool:
        """Whether the VM's machine ended by itself."""

    @property
    @abstractmethod
    def rests_unsent(self) -> bool:
        """The VM does not run, and its disks are not known to be as they are over there."""

    @property
    def waits_for_source(self) -> float:
        """Seconds since the instant of what was sent last, where nothing newer came to this host; else 0."""
        return 0.0

    @property
    def undecided(self) -> bool:
        """Whether it is a replica whose VM runs on this host by a failover that is not final."""
        return False

    def falls_behind(self, figures: Figures) -> bool:
        """Whether what waits becomes more."""
        return figures.catch_up_seconds is None

    @property
    def fenced(self) -> bool:
        """Whether the VM has failed over to another host, which sends it from now on."""
        known = self._means.turns.known(self.replication.vm) if self._means.turns else None
        return known is not None and known.turn in (Turn.FENCED, Turn.ADOPTING)

    @property
    def target(self) -> float:
        """Seconds that the newest point may be old, while its schedule lets nothing pass, too."""
        settings = self.replication.settings
        return settings.rpo_seconds + parse_schedule(settings.schedule).longest_gap()

    def wake(self) -> None:
        """There may be something new to send."""
        self._wake.set()

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

    @abstractmethod
    async def _turn(self) -> float | None:
        """One try; returns the seconds until the next, None: until something is told."""

    @abstractmethod
    async def last(self, machine: RunningMachine) -> None:
        """The machine is about to end: send what changed last, and keep its maps for the next one.

        `run` must have ended. Raises HoldfastError and OSError where the maps are not kept.
        """

    @abstractmethod
    async def forget(self) -> None:
        """Replication is over: nothing is kept for it on this host. `run` must have ended."""

    def measure_anew(self) -> None:
        """Forget the figures; the newest point stays known."""
        at = time.monotonic()
        newest = self.figures.newest
        self.figures = ReplicationFigures(self.target, at)
        if newest is not None:
            self.figures.done(newest)

    def changed(self, replication: Replication) -> None:
        """Its settings are others, or it was paused or resumed; takes hold with the next cycle.

        What it may send, and its priority, hold at once. `run` must have ended where it was paused.
        """
        self.replication, self._changed = replication, True
        self.figures.aim(self.target)
        self._link.tune(replication.settings.priority, replication.settings.limit)
        self.wake()

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

    def _disconnect(self) -> None:
        """Nothing is to be sent for a while."""
        if self._standing is not None:
            self._link.close()
            self._standing, self.progress.connected = None, False
        self.progress.went_well()

    def _open(self, name: str, disks: tuple[DiskShape, ...], term: int, via: tuple[str, ...] = ()) -> Open:
        settings, receives = self.replication.settings, self._means.receives()
        return Open(
            replication=self.replication.id,
            vm=self.replication.vm,
            name=name,
            disks=disks,
            points=settings.points,
            term=term,
            receives=receives.port if receives else 0,
            receives_at=receives.host if receives else "",
            agreed=settings.agreed,
            via=via,
        )

    async def _connected(self, opened: Open) -> Standing:
        peer, settings = await self._means.peers.get(self.replication.peer), self.replication.settings
        standing = await self._link.connect(
            Address(host=peer.host or "", port=peer.port or 0),
            self._means.identity,
            peer.fingerprint,
            self._means.name,
            opened,
            priority=settings.priority,
            limit=settings.limit,
        )
        self._asked = time.monotonic()
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

    async def _shipped(self, captured: Captured, attachments: Mapping[str, bytes]) -> None:
        """Send a cycle, which changes what the receiver said that it holds, and count it."""
        standing = self._standing or Standing(cycle=0)
        taken = time.monotonic() - max(0.0, time.time() - captured.taken)
        shipped = await self._link.ship(
            captured, standing.cycle, attachments, compared=standing.compare, told=self.progress.moved
        )
        shapes = tuple(DiskShape(id=disk.id, size=disk.size) for disk in captured.disks)
        self._standing = Standing(cycle=captured.cycle, disks=shapes, points=shipped.points)
        self._sent_at = self._asked = time.monotonic()
        self.figures.done(CycleDone(taken, self._sent_at, shipped.written + shipped.zeroed))
        self.progress.arrived(shipped)
        self.progress.newest = captured.cycle
        await self._record(shipped)

    async def _record(self, shipped: Shipped) -> None:
        if shipped.compared:
            data = {"peer": self.replication.peer, "compared": shipped.compared, "sent": shipped.sent}
            await self._means.events.emit("replica.compared", self.name, data)
        if shipped.full or not self.replication.initial:
            self.replication = await self._means.book.arrived(self.replication, full=shipped.full)

    async def _failed(self, error: HoldfastError | OSError) -> None:
        """Everything is found out anew: the link may be lost, the receiver may hold more or less."""
        now = time.monotonic()
        self._link.close()
        self._standing = None
        self.figures.failed(now)
        fault = Fault.of(error)
        if self.progress.failed(fault):
            data = {"peer": self.replication.peer, "id": fault.id, "error": fault.message}
            await self._means.events.emit("replica.failing", self.name, data)
            log.warning(
                "a cycle of replication failed", vm=self.replication.vm, error=fault.message, id=fault.id
            )

    async def _went_well(self) -> None:
        self._delay = _SOONEST
        seconds = self.progress.went_well()
        if seconds is not None:
            data = {"peer": self.replication.peer, "after_seconds": round(seconds, 1)}
            await self._means.events.emit("replica.resumed", self.name, data)

    def _backed_off(self) -> float:
        delay, self._delay = self._delay, min(2 * self._delay, _LATEST)
        return delay * random.uniform(0.8, 1.2)  # noqa: S311  (so that not all come back at once)
