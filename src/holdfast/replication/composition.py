"""Everything of replication on this host, joined over the rooms below it."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import ReplicaExtensionRow
from holdfast.operations.engine import Operations
from holdfast.replication import extending, seeds
from holdfast.replication import identity as replica_identity
from holdfast.replication.asking import TurnAsker
from holdfast.replication.attachments import Attachments
from holdfast.replication.dispatch import Dispatch
from holdfast.replication.explanations import Explanations
from holdfast.replication.extending import Extensions
from holdfast.replication.failover_test_records import FailoverTestBook
from holdfast.replication.failover_testing import FailoverTests
from holdfast.replication.history import History
from holdfast.replication.limits import SharedLimits
from holdfast.replication.listening import ReplicaListener
from holdfast.replication.origins import ReplicaOrigins
from holdfast.replication.pairing import PeerBook
from holdfast.replication.peering import Peering, own_name
from holdfast.replication.planning import Planning
from holdfast.replication.relaying import HeldMeans
from holdfast.replication.replica_records import ReplicaBook
from holdfast.replication.replicating import Means
from holdfast.replication.replication_records import ReplicationBook
from holdfast.replication.revival import Revival
from holdfast.replication.scrubbing import Scrubbing
from holdfast.replication.service import Replications
from holdfast.replication.store.replica import ReplicaStore
from holdfast.replication.turning import Joined, Turning
from holdfast.replication.turns import TurnBook
from holdfast.replication.writing_out import WritingOut
from holdfast.vm.registry import VmRegistry
from holdfast.vm.resting_disks import RestingVms
from holdfast.vm.rooms import Rooms


@dataclass(frozen=True)
class Replicas:
    peers: Peering
    sent: Replications
    held: ReplicaListener
    limits: SharedLimits
    explanations: Explanations
    planning: Planning
    revival: Revival
    tests: FailoverTests
    turning: Turning
    seeds: seeds.Seeds
    scrubbing: Scrubbing
    extensions: Extensions

    @classmethod
    async def compose(
        cls, catalog: Catalog, rooms: Rooms, registry: VmRegistry, operations: Operations
    ) -> Self:
        events, state = rooms.events, rooms.state
        identity = await asyncio.to_thread(replica_identity.load_or_make, state.keys)
        peers, held = PeerBook(catalog, events), ReplicaBook(catalog, events)
        book = ReplicationBook(catalog, events)
        store = ReplicaStore(state.replicas)
        listener = ReplicaListener(identity, own_name(), peers, held, store)
        origins = ReplicaOrigins(state.replicas)
        revival = Revival(rooms, registry, operations, store, origins, identity.key)
        dispatch, attachments = Dispatch(rooms.processes), Attachments(rooms.firmware)
        turns = TurnBook(catalog, events)
        await turns.load()
        means = Means(
            *(identity, own_name(), peers, book, dispatch, attachments, events, RestingVms(rooms)),
            turns=turns,
            receives=lambda: listener.told,
            writing=WritingOut(rooms.volumes.chain),
        )
        extended = ReplicationBook(catalog, events, ReplicaExtensionRow)
        holds = HeldMeans(held, store, state.runtime, identity.key)
        sent = Replications(means, registry, state, History(state.replica_history), holds, extended)
        listener.arrived = sent.arrived
        rooms.endings.tell(sent.before_end)
        limits = SharedLimits(state.replica_limits, dispatch, peers)
        limits.load()
        book_of_tests = FailoverTestBook(catalog, events)
        listener.tests = book_of_tests.last
        tests = FailoverTests(book_of_tests, revival, registry, operations, held, store)
        asker = TurnAsker(identity, own_name())
        extensions = Extensions(
            extending.Means(identity, peers, holds, extended, turns, asker, sent, listener.pin)
        )
        listener.extended = extensions.peers_of
        joined = Joined(turns, peers, book, held, store, listener, sent, revival, asker, extensions)
        turning = Turning(joined, rooms, registry, operations)
        seed_means = seeds.Means(identity, rooms, peers, held, store)
        for procedure in (*turning.procedures, *seeds.procedures(seed_means, registry.owner)):
            operations.register(procedure)
        peering = Peering(identity, peers, listener, held, book, limits.of_peer, extended)
        made = seeds.Seeds(seed_means, registry, operations)
        explained, planned = Explanations(sent, listener), Planning(sent)
        scrubbing = Scrubbing(held, store, events)
        sending = (peering, sent, listener, limits, explained, planned)
        return cls(*sending, revival, tests, turning, made, scrubbing, extensions)

    def keep(self) -> list[Coroutine[Any, Any, None]]:
        """What goes on for as long as the daemon runs."""
        kept = (self.sent, self.held, self.revival, self.tests, self.turning, self.scrubbing, self.extensions)
        return [*(each.keep() for each in kept), self.sent.keep_history()]
