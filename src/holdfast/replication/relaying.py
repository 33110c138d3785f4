"""Sends on a replica that this host holds: the next host of a chain gets its points, with their times.

    a point arrives ▶ pinned ▶ shown as it lies there ▶ what changed since the receiver's ▶ ship ▶ the older
    pin is dropped

A cycle has the number that the VM's own host gave it, so the receiver's answer says which point it stands at.
That point is pinned; where it is gone all the same, or what lay between the two was damaged, both sides are
compared. Points may be left out: each that is sent brings all that changed since the last one.
"""

import asyncio
import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

from holdfast.machine.running import RunningMachine
from holdfast.replication.attachments import SentVm
from holdfast.replication.capture import Captured, tag_of
from holdfast.replication.figures import Figures
from holdfast.replication.point_export import PointExport
from holdfast.replication.replica_records import HeldVm, NoSuchReplica, ReplicaBook, ReplicaLoop
from holdfast.replication.replicating import Means, Replicator
from holdfast.replication.replication_records import Replication
from holdfast.replication.revived_spec import read_sent
from holdfast.replication.store.errors import ReplicaNotFound
from holdfast.replication.store.record import Point
from holdfast.replication.store.replica import Replica, ReplicaStore
from holdfast.replication.wire import MOST_HOSTS, DiskShape, Standing
from holdfast.spec.errors import HoldfastError
from holdfast.spec.turn import RUNS
from holdfast.trust.firmware_state import opened
from holdfast.trust.protection import RecipientLock, RecipientOpener

_LOOK = 10.0
"""Seconds after which it is looked for a new point though none was told of."""
_ASKED = 60.0
"""Seconds after which it is asked again what is held."""
_PART = 5.0
"""So many points are sent on in the time of one RPO, at most: what they wait is a part of it."""
_SHORTEST = 0.05


@dataclass(frozen=True)
class HeldMeans:
    """Where replicas are that this host holds."""

    book: ReplicaBook
    store: ReplicaStore
    runtime: Path
    """Short folder for sockets."""
    key: Path
    """The private key by which firmware state is sealed for this host."""


@dataclass(frozen=True)
class _Beside:
    """What belongs to a point besides disks. Two are equal where nothing changed."""

    vm: SentVm
    firmware: str
    """Digest of what is sealed for this host; empty: there is none."""


class Relay(Replicator):
    """Sends on one replica; `held`: its record."""

    def __init__(self, replication: Replication, means: Means, of: HeldMeans, held: HeldVm) -> None:
        super().__init__(replication, means)
        self._of = of
        self._held = held
        self._attached: _Beside | None = None
        """What the receiver has for certain."""
        self._not_before = 0.0
        self._current: Point | None = None
        """The newest point here, where the receiver holds it."""
        self.taken_over = False
        """The receiver runs the VM."""
        self._undecided = False

    @property
    def name(self) -> str:
        return self._held.name

    @property
    def runs(self) -> bool:
        return False

    @property
    def machine_failed(self) -> bool:
        return False

    @property
    def rests_unsent(self) -> bool:
        return False

    @property
    def waits_for_source(self) -> float:
        return 0.0 if self._current is None else max(0.0, time.time() - self._current.taken.timestamp())

    @property
    def undecided(self) -> bool:
        return self._undecided

    def falls_behind(self, figures: Figures) -> bool:
        """What waits comes at once, as a whole point: it is behind only where that makes it late."""
        late = figures.rpo_seconds is not None and figures.rpo_seconds > self.target
        return late and super().falls_behind(figures)

    @property
    def fenced(self) -> bool:
        return self.taken_over

    async def last(self, machine: RunningMachine) -> None:
        """Nothing: what a VM changes that runs here is not its replica's."""

    async def forget(self) -> None:
        await asyncio.to_thread(unpinned, self._of.store, self._held.name, self.replication.id)

    async def _turn(self) -> float | None:
        held_back = self._held_back()
        turns = self._means.turns
        known = await turns.read(self.replication.vm) if turns is not None else None
        self._undecided = known is not None and known.turn in RUNS
        if self._undecided:
            held_back = math.inf  # it is received no more, and replicated once that is final
        if held_back > 0:
            self._disconnect()
            return max(_SHORTEST, min(held_back, _ASKED))
        if self._changed:
            self._changed, self._standing, self._not_before = False, None, 0.0
        if (wait := self._not_before - time.monotonic()) > 0:
            return wait
        if time.monotonic() - self._asked > _ASKED:
            self._standing = None
        begun = time.monotonic()
        try:
            await self._cycle()
        except (HoldfastError, OSError) as error:
            self._current = None
            await self._failed(error)
            return self._backed_off()
        await self._went_well()
        self._not_before = begun + max(_SHORTEST, self.replication.settings.rpo_seconds / _PART)
        return _LOOK

    async def _cycle(self) -> None:
        held = await self._of.book.of_vm(self.replication.vm)
        if held is None:
            raise NoSuchReplica(
                f"this host holds no replica {self._held.name!r} any more",
                value=self._held.name,
                cure=f"Send it on no more (`holdfast replica disable {self._held.name}`).",
            )
        self._held = held
        try:
            replica = await asyncio.to_thread(self._of.store.replica, held.name)
        except ReplicaNotFound:
            return  # nothing came yet
        points = replica.points()
        whole = [each for each in points if not each.lost]
        if not whole:
            return
        newest = whole[-1]
        attached = await asyncio.to_thread(replica.attachments, newest.number)
        sent = read_sent(attached.get("spec"), held.vm)
        standing = self._standing = self._standing or await self._connect(newest, sent)
        behind = [each.received for each in points if each.cycle > standing.cycle]
        self.figures.waiting(time.monotonic(), sum(behind))
        if standing.cycle >= newest.cycle:
            self._current = newest if standing.cycle == newest.cycle else None
            await self._pin(replica, newest, None)
            return
        base = next((each for each in points if each.cycle == standing.cycle), None)
        await self._pin(replica, newest, base)
        await self._send(replica, newest, base, sent, attached.get("firmware"))
        self.figures.waiting(time.monotonic(), 0)
        await self._pin(replica, newest, None)
        self._current = newest

    async def _send(
        self, replica: Replica, point: Point, base: Point | None, sent: SentVm, firmware: bytes | None
    ) -> None:
        standing = self._standing or Standing(cycle=0)
        since = base.number if base is not None and not standing.compare else None
        there = {each.id for each in standing.disks}
        reading = await asyncio.to_thread(replica.reading, point.number, since, there)
        sealed, beside = await self._sealed(standing, sent, firmware)
        with PointExport(reading, self._socket) as export:
            exclude = self.replication.settings.exclude
            disks = tuple(each for each in export.disks() if each.id not in exclude)
            whole = not standing.cycle and not standing.compare
            self.progress.initial = whole
            known = all(each.since is not None for each in disks)
            self.progress.comparing = standing.compare or not (whole or known)
            captured = Captured(
                cycle=point.cycle,
                taken=point.taken.timestamp(),
                socket=self._socket,
                disks=disks,
                consistency=point.consistency,
            )
            try:
                await self._shipped(captured, sealed)
            except (HoldfastError, OSError) as error:
                if export.failure is not None:
                    raise export.failure from error
                raise
        self._attached = beside

    @property
    def _socket(self) -> Path:
        return self._of.runtime / f"p-{tag_of(self.replication.id)}.sock"

    async def _pin(self, replica: Replica, newest: Point, base: Point | None) -> None:
        """What is sent, and what the receiver holds until it has that."""
        wanted = tuple(sorted({newest.number, base.number if base else newest.number}))
        if replica.pins().get(self.replication.id) != wanted:
            await asyncio.to_thread(replica.pin, self.replication.id, wanted)

    async def _connect(self, newest: Point, sent: SentVm) -> Standing:
        held, exclude = self._held, self.replication.settings.exclude
        disks = tuple(
            DiskShape(id=disk, size=size) for disk, size in newest.disks.items() if disk not in exclude
        )
        peer = await self._means.peers.get(self.replication.peer)
        via = came_through(held, peer.fingerprint)
        standing = await self._connected(self._open(sent.name, disks, held.term, via))
        self._attached = None
        return standing

    async def _sealed(
        self, standing: Standing, sent: SentVm, firmware: bytes | None
    ) -> tuple[dict[str, bytes], _Beside]:
        """What the receiver lacks beside disks, sealed for it, and what it has then."""
        vm = sent.model_copy(update={"failover": self.replication.settings.failover})
        beside = _Beside(vm, hashlib.sha256(firmware).hexdigest() if firmware is not None else "")
        known = self._attached if standing.cycle and not standing.compare else None
        found = {}
        if known is None or known.vm != beside.vm:
            found["spec"] = vm.model_dump_json().encode()
        if firmware is not None and (known is None or known.firmware != beside.firmware):
            found["firmware"] = await asyncio.to_thread(self._resealed, firmware)
        return found, beside

    def _resealed(self, sealed: bytes) -> bytes:
        opener = RecipientOpener.of_pem(self._of.key.read_bytes())
        return opened(sealed, opener).sealed(RecipientLock.of_pem(self._certificate.encode()))


def came_through(held: HeldVm, receiver: str) -> tuple[str, ...]:
    """Fingerprints of the hosts that a replica came through to this one, which may be sent to `receiver`.

    Raises ReplicaLoop.
    """
    via = (*held.via, held.source)
    if receiver in via or len(via) > MOST_HOSTS:
        raise ReplicaLoop(
            f"replica {held.name!r} came here "
            + ("through that host" if receiver in via else f"through {len(via)} hosts"),
            value=held.name,
            cure="Send it on to another host; a chain has an end."
            if receiver in via
            else "Replicate the VM to that host itself, or from an earlier host of the chain.",
        )
    return via


def unpinned(store: ReplicaStore, name: str, token: str) -> None:
    """A replica keeps no points for a token any more; nothing happens where it is not there."""
    try:
        replica = store.replica(name)
    except ReplicaNotFound:
        return
    if token in replica.pins():
        replica.pin(token, ())
