"""What a source asks about turns, answered: `listening.Desk`. All it says is checked, for it may lie."""

import asyncio
from collections.abc import Awaitable, Callable

from holdfast.host.space import require_memory
from holdfast.replication.attachments import SentVm
from holdfast.replication.receiving import Asked
from holdfast.replication.replica_records import HeldVm, NoSuchReplica, ReplicaBook
from holdfast.replication.revived_spec import read_sent
from holdfast.replication.store.replica import ReplicaStore
from holdfast.replication.taking_over import Takeovers, first
from holdfast.replication.turns import NotItsTurn, TurnBook, TurnRecord, moved
from holdfast.replication.wire import Prepare, Query, Release, TakeOver, TurnIs, Yield
from holdfast.spec.errors import Conflict
from holdfast.spec.replica import ReplicaPeer
from holdfast.spec.turn import Turn

RequireReady = Callable[[SentVm], Awaitable[None]]
"""Raises what stands in the way of running that VM here."""
Wake = Callable[[str], None]
"""The host that a VM is replicated back to is ready for it."""


class CycleNotNewest(Conflict):
    """What the source sent last is not what is newest here."""

    id = "replica-cycle-not-newest"


class TurnDesk:
    def __init__(
        self,
        turns: TurnBook,
        held: ReplicaBook,
        store: ReplicaStore,
        takeovers: Takeovers,
        require_ready: RequireReady,
        wake: Wake,
    ) -> None:
        self._turns = turns
        self._held = held
        self._store = store
        self._takeovers = takeovers
        self._require_ready = require_ready
        self._wake = wake

    async def answer(self, peer: ReplicaPeer, asked: Asked) -> TurnIs:
        """As `listening.Desk`. Raises NoSuchReplica and what a failover is refused by."""
        held = await self._held.of_vm(asked.vm)
        known = await self._turns.read(asked.vm)
        received = held is not None and (known is None or known.turn is Turn.REPLICA)
        former = held is not None and peer.fingerprint in held.former and peer.fingerprint != held.source
        if held is not None and former and received and isinstance(asked, Query | Yield):
            accepted = peer.fingerprint == held.heir
            return TurnIs(turn=Turn.REPLICA, term=held.term, sender="" if accepted else held.source)
        # What is received is the business of the host alone that sends it.
        theirs = known is not None and not received and (former or known.peer == peer.fingerprint)
        if not theirs and (held is None or held.source != peer.fingerprint):
            raise NoSuchReplica("this host holds no such replica of yours", value=asked.vm)
        ours = known or first(_required(held, asked.vm))
        if isinstance(asked, Query):
            if asked.turn is Turn.ADOPTING and ours.turn is Turn.PRIMARY:
                self._wake(asked.vm)
            return _told(ours, held)
        if isinstance(asked, Yield):
            await self._held.yield_to(asked.vm, asked.to, asked.term)
            return _told(ours)
        if isinstance(asked, Release):
            return _told(await self._release(ours, asked.term))
        if ours.term >= asked.term:
            return _told(ours)  # of a failover that was begun before, or is void
        if ours.turn is not Turn.REPLICA:
            raise NotItsTurn(
                f"the VM is {ours.turn} on the receiving host (term {ours.term})", value=str(ours.turn)
            )
        if isinstance(asked, Prepare):
            await self._prepare(_required(held, asked.vm), asked)
            return _told(ours)
        return await self._take_over(_required(held, asked.vm), asked)

    async def _prepare(self, held: HeldVm, asked: Prepare) -> None:
        replica = await asyncio.to_thread(self._store.replica, held.name)
        points = replica.points()
        if not points or points[-1].lost:
            raise _not_newest(held, 0)
        attached = await asyncio.to_thread(replica.attachments, points[-1].number)
        await self._require_ready(read_sent(attached.get("spec"), held.vm))
        await asyncio.to_thread(require_memory, asked.memory)

    async def _take_over(self, held: HeldVm, asked: TakeOver) -> TurnIs:
        replica = await asyncio.to_thread(self._store.replica, held.name)
        newest = replica.points()[-1] if replica.points() else None
        if newest is None or newest.lost or newest.cycle != asked.cycle:
            raise _not_newest(held, newest.cycle if newest else 0)
        await self._takeovers.begin(
            held, newest, asked.term, start=asked.start, final=True, actor="replication"
        )
        return TurnIs(turn=Turn.TAKING_OVER, term=asked.term)

    async def _release(self, ours: TurnRecord, term: int) -> TurnRecord:
        """A TAKE_OVER of that term that is still on its way comes to nothing."""

        def decide(_: object, before: TurnRecord | None) -> TurnRecord | None:
            now = before or ours
            if now.turn is not Turn.REPLICA or now.term >= term:
                return None
            return moved(now, Turn.REPLICA, term=term)

        return await self._turns.decide(ours.vm, decide) or ours


def _required(held: HeldVm | None, vm: str) -> HeldVm:
    if held is None:
        raise NoSuchReplica("this host holds no such replica of yours", value=vm)
    return held


def _told(ours: TurnRecord, held: HeldVm | None = None) -> TurnIs:
    if held is not None and ours.turn is Turn.REPLICA and held.heir_term > ours.term:
        return TurnIs(turn=ours.turn, term=held.heir_term, sender=held.heir)
    return TurnIs(turn=ours.turn, term=ours.term, error=ours.error)


def _not_newest(held: HeldVm, cycle: int) -> CycleNotNewest:
    return CycleNotNewest(
        f"the newest whole cycle of {held.name!r} on the receiving host is {cycle}",
        value=cycle,
        cure="Wait until replication has caught up, and fail over again.",
    )
