"""Chains: replicas on this host that are sent on to further hosts, and what failovers make of them.

    held ──extend──▶ sent on ──the VM comes to run here for good──▶ replicated, as any VM of this host
                        └──the VM runs for good on the host that it was sent on to──▶ received from there

Owner of the records of extensions is the `ReplicationBook` of theirs, of the senders `Replications`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from holdfast.catalog.clock import aware, now
from holdfast.replication.asking import TurnAsker
from holdfast.replication.identity import Identity
from holdfast.replication.pairing import PeerBook, PeerNotFound
from holdfast.replication.relaying import HeldMeans, came_through, unpinned
from holdfast.replication.replica_records import HeldVm, ReplicaLoop
from holdfast.replication.replication_records import Replication, ReplicationBook
from holdfast.replication.service import Replications, require_sendable
from holdfast.replication.turns import NotItsTurn, ReplicaFailedOver, TurnBook
from holdfast.replication.wire import Query, TurnIs
from holdfast.spec.errors import HoldfastError
from holdfast.spec.ids import new_id
from holdfast.spec.replica import PeerRole, ReplicaEnable, ReplicaExtend, ReplicaPeer, ReplicaStatus
from holdfast.spec.turn import RUNS, Turn

log = structlog.get_logger(__name__)

_ROUND_SECONDS = 1.0
_AGAIN_SECONDS = 5.0
_ASK_SECONDS = 2.5


@dataclass(frozen=True)
class Means:
    identity: Identity
    peers: PeerBook
    held: HeldMeans
    book: ReplicationBook
    """Of extensions."""
    turns: TurnBook
    asker: TurnAsker
    sent: Replications
    pin: Callable[[], Awaitable[None]]
    """Let in who may send."""


class Extensions:
    def __init__(self, means: Means) -> None:
        self._means = means
        self._asked_at: dict[str, float] = {}

    async def extend(self, name: str, request: ReplicaExtend) -> ReplicaStatus:
        """Send a replica on to a peer, from now on.

        Raises:
            NoSuchReplica, PeerNotFound, PeerCannotReceive, ReplicaLoop, NotItsTurn, AlreadyReplicated
            NoPoints, ReplicaNotFound, ReplicaSpecDamaged: nothing has arrived whole yet.
            BadRetention, BadLimit, BadSchedule, NoSuchDisk, NicNotFound, NothingToReplicate
            NeedsAttestedHost
        """
        means = self._means
        held = await means.held.book.get(name)
        peer = await means.sent.receiver(request.peer)
        if peer.fingerprint == means.identity.fingerprint:
            raise ReplicaLoop("that peer is this host", value=peer.name, cure="Send it on to another host.")
        came_through(held, peer.fingerprint)
        known = await means.turns.read(held.vm)
        if known is not None and known.turn is not Turn.REPLICA:
            raise NotItsTurn(
                f"VM {held.name!r} is {known.turn} here: it is no replica that could be sent on",
                value=str(known.turn),
                cure="Once it runs here for good, replicate it (`holdfast replica enable`).",
            )
        settings = ReplicaEnable(**{**request.model_dump(), "peer": peer.name})
        sent = await means.sent.sent_vm(held.name, held.vm)
        require_sendable(held.name, sent.spec, settings)
        replication = Replication(id=new_id(), vm=held.vm, settings=settings, enabled=aware(now()))
        await means.sent.extend(replication)
        found = await means.sent.list(held.name)
        return next(each for each in found if each.peer == peer.name)

    async def peers_of(self, vm: str) -> tuple[str, ...]:
        """Whom the replica of a VM, by its id, is sent on to."""
        return tuple(each.peer for each in await self._means.book.all(vm))

    async def allow(self, held: HeldVm) -> None:
        """As `taking_over.Allow`: not where it runs on a host further on. One that is not there has no say.

        Raises ReplicaFailedOver.
        """
        sent = await self._means.book.all(held.vm)
        answers = await asyncio.gather(*(self._ask(each) for each in sent))
        term = max(held.term, self._means.turns.term(held.vm))
        for each, (_, answer) in zip(sent, answers, strict=True):
            if answer is not None and answer.turn in RUNS and answer.term > term:
                raise _elsewhere(held, repr(each.peer), answer.term)
        if held.heir_term > term:
            raise _elsewhere(held, "the host that it failed over to", held.heir_term)

    async def keep(self) -> None:
        """Drop what nobody needs any more, and follow failovers; for ever."""
        await asyncio.to_thread(self._unpin, {each.id for each in await self._means.book.all()})
        while True:
            for each in await self._means.book.all():
                try:
                    await self.look(each)
                except (HoldfastError, OSError) as error:
                    log.warning("a replica that is sent on was not looked at", vm=each.vm, error=str(error))
                except Exception:
                    log.exception("a fault of ours about a replica that is sent on", vm=each.vm)
            await asyncio.sleep(_ROUND_SECONDS)

    async def look(self, extension: Replication) -> None:
        """What has become of the VM, as far as it matters to one extension."""
        means = self._means
        known = await means.turns.read(extension.vm)
        if known is not None and known.turn is Turn.PRIMARY:
            await means.sent.become(extension)
            log.info("a replica that was sent on is replicated from here", vm=known.name, peer=extension.peer)
            return
        relay, clock = means.sent.relay(extension.id), asyncio.get_running_loop().time()
        if relay is None or (relay.progress.connected and relay.progress.fault is None):
            return
        if (known is not None and known.turn in RUNS) or clock < self._asked_at.get(extension.id, 0.0):
            return
        self._asked_at[extension.id] = clock + _AGAIN_SECONDS
        peer, answer = await self._ask(extension)
        held = await means.held.book.of_vm(extension.vm)
        if peer is not None and held is not None and held.source == peer.fingerprint:
            await means.sent.end_extension(extension)  # a daemon that was killed did not come to it
            return
        if peer is None or answer is None or held is None:
            return
        relay.taken_over = answer.turn in RUNS and answer.term > held.term
        relay.wake()
        if relay.taken_over and answer.turn is Turn.PRIMARY:
            await self._received_from(extension, peer, answer.term)

    async def _received_from(self, extension: Replication, peer: ReplicaPeer, term: int) -> None:
        """The VM runs for good on the host that it was sent on to: that one sends it here from now on."""
        means = self._means
        await means.held.book.yield_to(extension.vm, peer.fingerprint, term)
        if await means.peers.of(peer.fingerprint, PeerRole.SOURCE) is None:
            await means.peers.turned(peer, PeerRole.SOURCE)
            await means.pin()
        await means.sent.end_extension(extension)

    async def _ask(self, extension: Replication) -> tuple[ReplicaPeer | None, TurnIs | None]:
        means = self._means
        try:
            peer = await means.peers.get(extension.peer)
        except PeerNotFound:
            return None, None
        asked = Query(vm=extension.vm, turn=Turn.REPLICA, term=means.turns.term(extension.vm))
        try:
            return peer, await means.asker.ask(peer, asked, _ASK_SECONDS)
        except (HoldfastError, OSError):
            return peer, None

    def _unpin(self, extensions: set[str]) -> None:
        """What a daemon that was killed left of extensions that are over."""
        store = self._means.held.store
        for name in store.names():
            for token in set(store.replica(name).pins()) - extensions:
                unpinned(store, name, token)


def _elsewhere(held: HeldVm, where: str, term: int) -> ReplicaFailedOver:
    return ReplicaFailedOver(
        f"VM {held.name!r} runs on {where}, to which this replica was sent on (term {term})",
        value=held.name,
        cure="Leave it off here. Cancel the failover over there, or fail over back from there.",
        detail={"term": term},
    )
