"""All that belongs to turns, joined: what the API asks for, the desk for other hosts, what runs for ever."""

import asyncio
from dataclasses import dataclass

from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Procedure
from holdfast.replication import adoption, completing, handing_over, taking_over
from holdfast.replication.addressing import Addressing
from holdfast.replication.asking import TurnAsker
from holdfast.replication.attachments import SentVm
from holdfast.replication.extending import Extensions
from holdfast.replication.failover_network import mapped
from holdfast.replication.fencing import Fencing, Local
from holdfast.replication.listening import ReplicaListener
from holdfast.replication.pairing import PeerBook
from holdfast.replication.replica_records import HeldVm, ReplicaBook
from holdfast.replication.replication_records import ReplicationBook
from holdfast.replication.revival import NotOnReplica, Revival, Wanted
from holdfast.replication.service import Replications
from holdfast.replication.store.replica import ReplicaStore
from holdfast.replication.turn_desk import TurnDesk
from holdfast.replication.turns import TurnBook, TurnRecord
from holdfast.replication.yielding import Yielding
from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation
from holdfast.spec.turn import Failover, PlannedFailover, TurnView
from holdfast.spec.vm import VmSpec, VmState
from holdfast.vm.import_admission import VmIdTaken
from holdfast.vm.planning import Planner
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms

_DOWN = (VmState.OFF, VmState.FAILED, VmState.SAVED)


@dataclass(frozen=True)
class Joined:
    """What turns are joined to."""

    turns: TurnBook
    peers: PeerBook
    sent: ReplicationBook
    held: ReplicaBook
    store: ReplicaStore
    listener: ReplicaListener
    replications: Replications
    revival: Revival
    asker: TurnAsker
    extensions: Extensions


class Turning:
    def __init__(self, joined: Joined, rooms: Rooms, registry: VmRegistry, operations: Operations) -> None:
        self._joined = joined
        self._rooms = rooms
        self._registry = registry
        self._operations = operations
        self._planner = Planner(rooms)
        turns, peers, held, store = joined.turns, joined.peers, joined.held, joined.store
        addressing = Addressing(registry.owner)
        vms = taking_over.LocalVms(rooms.records, registry, operations)
        halt, allow = joined.listener.halt, joined.extensions.allow
        takes = taking_over.Means(turns, held, store, vms, halt, self._make, addressing.set, allow)
        gives = handing_over.Means(
            turns, peers, joined.sent, joined.asker, registry.owner, joined.replications.trouble
        )
        yielding = Yielding(turns, peers, joined.sent, joined.asker)
        adopts = adoption.Means(
            rooms,
            turns,
            peers,
            held,
            store,
            joined.asker,
            vms,
            joined.listener.pin,
            joined.replications.send_no_more,
            yielding.note,
        )
        completes = completing.Means(
            turns, peers, joined.replications.enable, self._spec, self._settle, joined.listener.remove
        )
        self._takeovers = taking_over.Takeovers(takes, operations)
        self._handovers = handing_over.Handovers(gives, registry)
        self._fencing = Fencing(
            *(turns, peers, joined.sent, joined.asker, rooms.events),
            self._local,
            joined.replications.sends,
        )
        self._adoption = adoption.Adoption(adopts, registry, operations)
        self._yielding = yielding
        self._completion = completing.Completion(completes)
        self.procedures: tuple[Procedure, ...] = (
            *taking_over.procedures(takes),
            *handing_over.procedures(gives),
            *adoption.procedures(adopts, registry.owner),
        )
        rooms.beginnings.ask(self._fencing.before_start)
        joined.listener.desk = TurnDesk(
            turns, held, store, self._takeovers, self._require_ready, joined.replications.wake
        )

    async def keep(self) -> None:
        """For ever."""
        parts = (self._fencing, self._adoption, self._completion, self._yielding)
        await asyncio.gather(*(each.keep() for each in parts))

    # What people ask for

    async def turns(self) -> tuple[TurnView, ...]:
        """Whose turn it is to run each VM that failed over, or did once."""
        names = {each.fingerprint: each.name for each in reversed(await self._joined.peers.peers())}
        return tuple(_view(each, names.get(each.peer, "")) for each in self._joined.turns.all())

    async def failover(self, name: str, request: Failover, actor: str) -> Operation:
        """As `Takeovers.failover`."""
        return await self._takeovers.failover(name, request, actor)

    async def commit(self, name: str) -> TurnView:
        """As `Takeovers.commit`."""
        found = await self._takeovers.commit(name)
        return _view(found, "")

    async def cancel(self, name: str, actor: str) -> Operation:
        """As `Takeovers.cancel`."""
        return await self._takeovers.cancel(name, actor)

    async def hand_over(self, name: str, request: PlannedFailover, actor: str) -> Operation:
        """As `Handovers.failover`."""
        return await self._handovers.failover(name, request, actor)

    async def reclaim(self, name: str) -> TurnView:
        """As `Fencing.reclaim`. Raises VmNotFound."""
        owner = await self._registry.named(name)
        return _view(await self._fencing.reclaim(owner.record.id, owner.record.name), "")

    # What the parts are given

    async def _make(self, held: HeldVm, point: int, name: str, start: bool, actor: str) -> None:
        wanted = Wanted(name=name, same_identity=True, isolated=False, start=start, actor=actor)
        await self._joined.revival.revive(held, point, wanted)

    async def _spec(self, vm: str) -> VmSpec:
        return (await self._registry.owner(vm)).record.spec

    async def _settle(self, vm: str) -> None:
        try:
            begun = await self._joined.revival.settle(vm, "replication")
        except NotOnReplica:
            return
        ended = await self._operations.wait(begun.id)
        if ended.error:
            raise RemoteError(ended.error)
        await self._joined.revival.sweep()

    async def _local(self, vm: str) -> Local:
        record = (await self._registry.owner(vm)).record
        return Local(record.name, record.state not in _DOWN)

    async def _require_ready(self, sent: SentVm) -> None:
        await self._planner.require_free_name(sent.name)
        if any(each.id == sent.id for each in await self._rooms.records.all()):
            raise VmIdTaken("the receiving host has a VM with that id", value=sent.id)
        mapped(sent.spec, sent.failover, {each.name for each in await self._rooms.switches.all()})


def _view(known: TurnRecord, peer: str) -> TurnView:
    return TurnView(
        vm=known.vm,
        name=known.name,
        turn=known.turn,
        term=known.term,
        peer=peer,
        since=known.since,
        error=known.error,
    )
