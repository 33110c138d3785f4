"""Where other hosts send their replicas: a thread for each link, and the upkeep of what they brought.

    accept ▶ TLS ▶ no certificate: PAIR              a pinned one: OPEN ▶ the record ▶ its folder in the store

Records are asked for on the daemon's loop, everything else happens in threads. Of one VM one link is served
at a time: a newer one takes the place of one that may hang.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

import structlog

from holdfast.replication.explaining import HeldFacts
from holdfast.replication.holding import StoredReplica
from holdfast.replication.identity import Identity
from holdfast.replication.link import Address, Door, LinkLost, NotThatPeer, TlsLink
from holdfast.replication.pairing import PeerBook, serve_pairing
from holdfast.replication.receiving import Asked, serve
from holdfast.replication.replica_records import HeldVm, ReplicaBook, ReplicaLoop
from holdfast.replication.retention import kept, parse_plan
from holdfast.replication.store.errors import ReplicaBusy, ReplicaInUse, ReplicaNotFound
from holdfast.replication.store.replica import Replica, ReplicaStore
from holdfast.replication.way_back import require_usable
from holdfast.replication.wire import Open, Pair, TurnIs
from holdfast.spec.errors import Conflict, HoldfastError, InvalidInput
from holdfast.spec.replica import HeldReplica, PeerRole, ReplicaPeer, ReplicaSender

log = structlog.get_logger(__name__)
T = TypeVar("T")

_RECORDS_SECONDS = 30.0
_HANDOVER_SECONDS = 20.0
_MOST_LINKS = 2048
_MOST_STRANGERS = 32
"""Connections of which it is not known yet whose they are."""
_UPKEEP_SECONDS = 5.0
_USED_SECONDS = 30.0
_REFUSED_LATELY = timedelta(seconds=90)


class Desk(Protocol):
    """Answers what is asked about turns."""

    async def answer(self, peer: ReplicaPeer, asked: Asked) -> TurnIs:
        """Raises a HoldfastError, which the peer is told."""
        ...


class CannotListen(Conflict):
    id = "replica-cannot-listen"


class PeerCannotSend(InvalidInput):
    id = "replica-peer-cannot-send"


class ReplicaStillSent(Conflict):
    """The host that a replica is sent by is connected."""

    id = "replica-still-sent"


async def _none() -> dict[str, datetime]:
    return {}


async def _nobody(_: str) -> tuple[str, ...]:
    return ()


@dataclass
class _Served:
    """One VM, as it is sent here."""

    one: threading.Lock = field(default_factory=threading.Lock)
    link: TlsLink | None = None


class ReplicaListener:
    """Owner of the links that come in; the store's objects are used through it alone.

    Args:
        name: what this host calls itself.
    """

    def __init__(
        self, identity: Identity, name: str, peers: PeerBook, book: ReplicaBook, store: ReplicaStore
    ) -> None:
        self._identity = identity
        self._name = name
        self._peers = peers
        self._book = book
        self._store = store
        self._pinned: dict[str, ReplicaPeer] = {}
        """By fingerprint."""
        self._served: dict[str, _Served] = {}
        """By the VM's id."""
        self._used: dict[str, tuple[str, int]] = {}
        """By the replica's name: its source, and the bytes that it took lately."""
        self._refused: dict[str, tuple[datetime, str, str]] = {}
        """By the VM's id: when what came of it was refused last, the error's id and words."""
        self.tests: Callable[[], Awaitable[dict[str, datetime]]] = _none
        """When each replica was tested last, by its name in lower case."""
        self._tested: dict[str, datetime] = {}
        """As they said lately."""
        self.extended: Callable[[str], Awaitable[tuple[str, ...]]] = _nobody
        """Gives the peers that a replica, by its VM's id, is sent on to."""
        self.arrived: Callable[[str], None] = lambda _: None
        """Told the id of each VM of which a cycle arrived."""
        self._lock = threading.Lock()
        self._links = threading.Semaphore(_MOST_LINKS)
        self._strangers = threading.Semaphore(_MOST_STRANGERS)
        self._door: Door | None = None
        self._loop = asyncio.get_running_loop()
        self.desk: Desk | None = None
        """Of whom what is asked about turns is asked; None: that is refused."""

    @property
    def port(self) -> int | None:
        """TCP port; None: it does not listen."""
        return self._door.port if self._door else None

    @property
    def told(self) -> Address | None:
        """Where others are told that it listens, see `Door.told`; None: it does not."""
        return self._door.told if self._door else None

    async def listen(self, address: Address) -> None:
        """Raises CannotListen."""
        await self.pin()
        try:
            self._door = Door(address, self._identity, self._certificates)
        except OSError as error:
            raise CannotListen(
                f"replicas cannot be listened for at {address.host}, port {address.port}: {error.strerror}",
                value=f"{address.host}:{address.port}",
                cure="Choose an address of this host and a free port with --replica-listen.",
            ) from error
        threading.Thread(target=self._accept, args=(self._door,), name="replica-door", daemon=True).start()

    async def pin(self) -> None:
        """Peers came or went: let in who is known now, and nobody else."""
        found = [each for each in await self._peers.peers() if each.role is PeerRole.SOURCE]
        self._pinned = {each.fingerprint: each for each in found}
        for each in list(self._served.values()):
            link = each.link
            if link is not None and link.peer not in self._pinned:
                link.abort()

    async def keep(self) -> None:
        """Thin out points, and see how much room replicas take; for ever."""
        measured = 0.0
        while True:
            measure = time.monotonic() - measured >= _USED_SECONDS
            if measure:
                measured = time.monotonic()
                self._tested = await self.tests()
            for held in await self._book.held():
                try:
                    await asyncio.to_thread(self._tend, held, measure=measure)
                except (HoldfastError, OSError) as error:
                    log.warning("a replica could not be thinned out", replica=held.name, error=str(error))
            await asyncio.sleep(_UPKEEP_SECONDS)

    async def held(self) -> tuple[HeldReplica, ...]:
        """All replicas on this host, by name."""
        return tuple([await asyncio.to_thread(self._view, each) for each in await self._book.held()])

    async def look(self, name: str) -> tuple[HeldReplica, HeldFacts]:
        """One replica, and what tells why it is as it is. Raises NoSuchReplica."""
        held = await self._book.get(name)
        view = await asyncio.to_thread(self._view, held)
        peer, now = self._pinned.get(held.source), datetime.now(UTC)
        with self._lock:
            used = sum(count for source, count in self._used.values() if source == held.source)
        refused = self._refused.get(held.vm)
        if refused is not None and now - refused[0] > _REFUSED_LATELY:
            refused = None  # a source tries more often than that
        return view, HeldFacts(
            age=None if view.newest is None else (now - view.newest).total_seconds(),
            paired=peer is not None,
            lost=view.lost,
            room=peer.limits.space if peer else None,
            used=used,
            refused=refused,
        )

    def refused(self, vm: str, error: HoldfastError) -> None:
        """What came of a VM was refused."""
        self._refused[vm] = datetime.now(UTC), error.id, error.message

    async def remove(self, name: str) -> None:
        """A replica with all its points. Raises NoSuchReplica, ReplicaBusy, ReplicaInUse."""
        held = await self._book.get(name)
        if peers := await self.extended(held.vm):
            raise ReplicaInUse(
                f"replica {held.name!r} is sent on to {', '.join(peers)}",
                value=held.name,
                cure=f"Send it on no more first (`holdfast replica disable {held.name}`).",
            )
        await asyncio.to_thread(self._require_closed, held.name)

        def work() -> None:
            served = self._take_over(held.vm, None)
            try:
                self._store.remove(held.name)
                self._used.pop(held.name, None)
            finally:
                served.one.release()

        await asyncio.to_thread(work)
        await self._book.remove(name)

    async def accept_from(self, name: str, request: ReplicaSender) -> HeldReplica:
        """A person says that a replica may be sent by another host from now on.

        Raises NoSuchReplica, PeerNotFound, PeerCannotSend, ReplicaStillSent.
        """
        held, peer = await self._book.get(name), await self._peers.get(request.peer)
        if peer.role is not PeerRole.SOURCE:
            raise PeerCannotSend(
                f"{peer.name!r} takes replicas of this host; nothing can come from it",
                value=peer.name,
                cure="Pair the other way round: `holdfast replica accept` here, `replica peer add` there.",
            )
        served, now = self._served.get(held.vm), self._pinned.get(held.source)
        still = served is not None and served.link is not None and peer.fingerprint != held.source
        if still and not request.replace:
            raise ReplicaStillSent(
                f"replica {held.name!r} is being sent by {now.name if now else 'another host'!r}",
                value=held.name,
                cure="See that the VM failed over from that host, and disable its replication there; or add "
                "--yes.",
            )
        await self._book.accept_from(held.name, peer)
        return await asyncio.to_thread(self._view, await self._book.get(held.name))

    async def halt(self, vm: str) -> None:
        """End the link about a VM, which by its turn is not let in again. Raises ReplicaBusy."""

        def work() -> None:
            self._take_over(vm, None).one.release()

        await asyncio.to_thread(work)

    def _require_closed(self, name: str) -> None:
        with contextlib.suppress(ReplicaNotFound):
            if self._store.replica(name).opened():
                raise ReplicaInUse(
                    f"a VM of this host stands on a point of replica {name!r}",
                    value=name,
                    cure="Delete that VM, or end the test that it is of, first.",
                )

    def close(self) -> None:
        if self._door is not None:
            self._door.close()

    # In threads

    def _certificates(self) -> tuple[str, ...]:
        return tuple(each.certificate for each in self._pinned.values())

    def _ask(self, asked: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result(_RECORDS_SECONDS)

    def _accept(self, door: Door) -> None:
        while True:
            try:
                connection = door.accept()
            except LinkLost as error:
                log.info("replicas are listened for no more", error=error.message)
                return
            self._strangers.acquire()
            threading.Thread(
                target=self._serve, args=(door, connection), name="replica-link", daemon=True
            ).start()

    def _serve(self, door: Door, connection: Any) -> None:
        try:
            try:
                link = door.admit(connection)
            except LinkLost as error:
                log.info("somebody was not let in to send replicas", error=error.message)
                return
            if link.peer is None:
                self._reported(link, lambda: serve_pairing(link, self._name, self._admit))
                return
        finally:
            self._strangers.release()
        if not self._links.acquire(blocking=False):
            link.close()
            return
        opened = _Opened(self, link)
        try:
            asked = self._asked(link, self.desk) if self.desk is not None else None
            self._reported(link, lambda: serve(link, self._name, opened, asked), opened.refused)
        finally:
            opened.close()
            self._links.release()

    @staticmethod
    def _reported(
        link: TlsLink, work: Any, refused: Callable[[HoldfastError], None] = lambda _: None
    ) -> None:
        try:
            work()
        except LinkLost as error:
            log.info("a source of replicas went", error=error.message)
        except HoldfastError as error:
            log.warning("a source of replicas was refused", error=error.message, id=error.id)
            refused(error)
        except Exception:
            log.exception("a link of replicas failed")
            link.close()

    def _admit(self, asked: Pair) -> None:
        async def admit() -> None:
            await self._peers.admit(asked)
            await self.pin()

        self._ask(admit())

    def _asked(self, link: TlsLink, desk: Desk) -> Callable[[Asked], TurnIs]:
        def answer(asked: Asked) -> TurnIs:
            return self._ask(desk.answer(self._peer(link), asked))

        return answer

    def _peer(self, link: TlsLink) -> ReplicaPeer:
        peer = self._pinned.get(link.peer or "")
        if peer is None:
            raise NotThatPeer("this host is not paired any more", cure="Pair the hosts again.")
        return peer

    def _reached(self, peer: ReplicaPeer, host: str, port: int) -> None:
        if (peer.host, peer.port) != ((host, port) if port else (None, None)):
            found = self._ask(self._peers.reached(peer, host, port))
            if peer.fingerprint in self._pinned:
                self._pinned[peer.fingerprint] = found

    def open(self, link: TlsLink, opened: Open) -> tuple[_Served, StoredReplica]:
        """The replica that a link is about, of which it is the only one until `one` is released.

        Raises NotThatPeer, ReplicaLoop, BadRetention, BadLimit, BadSchedule, ReplicaBusy and as
        `ReplicaBook.claim`.
        """
        peer = self._peer(link)
        if self._identity.fingerprint in opened.via:
            raise ReplicaLoop(
                f"the replica of VM {opened.name!r} came through this host already",
                value=opened.name,
                cure="Send it on to another host; a chain has an end.",
            )
        parse_plan(opened.points)
        if opened.agreed is not None:
            require_usable(opened.agreed)
        held, other = self._ask(self._book.claim(peer, opened))
        self._reached(peer, opened.receives_at or link.host, opened.receives)
        served = self._take_over(held.vm, link)
        try:
            # Its turn may have come while this link waited for another one's end.
            self._ask(self._book.require_receivable(peer, opened))
            replica = self._replica(held.name)

            def confirm() -> None:
                self._ask(self._book.confirm(held.name, opened.replication))

            room = self._room_of(peer, held.name)
            return served, StoredReplica(
                replica,
                room,
                confirm if other else None,
                lambda: self._tested.get(held.name.lower()),
                lambda: self._arrived(held.vm),
            )
        except BaseException:
            served.one.release()
            raise

    def _arrived(self, vm: str) -> None:
        with contextlib.suppress(RuntimeError):  # the daemon ends
            self._loop.call_soon_threadsafe(self.arrived, vm)

    def _take_over(self, vm: str, link: TlsLink | None) -> _Served:
        with self._lock:
            served = self._served.setdefault(vm, _Served())
            before, served.link = served.link, link
        if before is not None:
            before.abort()
        if not served.one.acquire(timeout=_HANDOVER_SECONDS):
            raise ReplicaBusy(
                "an earlier link about this VM has not ended yet",
                value=vm,
                cure="It is tried again by itself.",
            )
        return served

    def _replica(self, name: str) -> Replica:
        try:
            return self._store.replica(name)
        except ReplicaNotFound:
            return self._store.create(name)

    def _room_of(self, peer: ReplicaPeer, name: str) -> Any:
        def room() -> int | None:
            space = self._pinned.get(peer.fingerprint, peer).limits.space
            if space is None:
                return None
            with self._lock:
                others = [
                    used
                    for each, (source, used) in self._used.items()
                    if source == peer.fingerprint and each != name
                ]
            return max(0, space - sum(others))

        return room

    def _tend(self, held: HeldVm, *, measure: bool) -> None:
        try:
            replica = self._store.replica(held.name)
        except ReplicaNotFound:
            return  # nothing came yet
        points = replica.points()
        keep = kept(points, parse_plan(held.points))
        if len(points) > len(keep):
            replica.prune(keep)
        if measure:
            used = replica.used()
            with self._lock:
                self._used[held.name] = held.source, used

    def _view(self, held: HeldVm) -> HeldReplica:
        try:
            replica = self._store.replica(held.name)
            points, used = replica.points(), replica.used()
        except ReplicaNotFound:
            points, used = (), 0
        peer, heir = self._pinned.get(held.source), self._pinned.get(held.heir)
        served = self._served.get(held.vm)
        return HeldReplica(
            name=held.name,
            source=peer.name if peer else "",
            connected=served is not None and served.link is not None,
            points=len(points),
            lost=sum(bool(each.lost) for each in points),
            last_test=self._tested.get(held.name.lower()),
            accepted_from=heir.name if heir else "",
            newest=points[-1].taken if points else None,
            oldest=points[0].taken if points else None,
            used=used,
        )


class _Opened:
    """What a link is about, once it said so."""

    def __init__(self, listener: ReplicaListener, link: TlsLink) -> None:
        self._listener = listener
        self._link = link
        self._served: _Served | None = None
        self._vm = ""

    def refused(self, error: HoldfastError) -> None:
        # Of a VM that it may not send nothing is remembered: a source could make up any number of them.
        if self._served is not None:
            self._listener.refused(self._vm, error)

    def __call__(self, opened: Open) -> StoredReplica:
        self._vm = opened.vm
        self._served, replica = self._listener.open(self._link, opened)
        return replica

    def close(self) -> None:
        if self._served is not None:
            if self._served.link is self._link:
                self._served.link = None
            self._served.one.release()
