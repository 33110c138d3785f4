"""The sending side's turns: no VM starts here that has failed over, and this host finds that out by itself.

    before a start ──▶ QUERY to its receivers, 2.5 s at most; one that cannot be reached has no say
    every few seconds ──▶ QUERY about VMs that are not being sent, and those that are fenced

A VM that runs is never ended: that both run is told, and a person decides which of the two is kept.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from holdfast.catalog.clock import aware, now
from holdfast.catalog.events import EventLog
from holdfast.replication.asking import TurnAsker
from holdfast.replication.pairing import PeerBook, PeerNotFound
from holdfast.replication.replication_records import Replication, ReplicationBook
from holdfast.replication.turns import FIRST_TERM, TurnBook, TurnRecord, moved
from holdfast.replication.wire import Query, TurnIs
from holdfast.spec.errors import Conflict, HoldfastError
from holdfast.spec.replica import ReplicaPeer
from holdfast.spec.turn import RUNS, Turn

log = structlog.get_logger(__name__)

START_SECONDS = 2.5
"""That a start waits for its VM's receivers, all of them together."""
_ROUND_SECONDS = 3.0
_ASK_SECONDS = 5.0
_SEEN = frozenset({Turn.FENCED, Turn.PRIMARY})
"""With these of its own a host minds what the other one says."""


class VmFenced(Conflict):
    """The VM has failed over to another host."""

    id = "replica-fenced"


@dataclass(frozen=True)
class Local:
    """A VM of this host, as far as turns need it."""

    name: str
    running: bool


Find = Callable[[str], Awaitable[Local]]
"""From a VM's id. Raises VmNotFound."""
Sends = Callable[[str], bool]
"""Whether the link of a replication, by its id, is there, so that its receiver is known to be one."""


class Fencing:
    def __init__(
        self,
        turns: TurnBook,
        peers: PeerBook,
        book: ReplicationBook,
        asker: TurnAsker,
        events: EventLog,
        find: Find,
        sends: Sends,
    ) -> None:
        self._turns = turns
        self._peers = peers
        self._book = book
        self._asker = asker
        self._events = events
        self._find = find
        self._sends = sends

    async def before_start(self, vm: str, name: str) -> None:
        """As `beginnings.MayBegin`. Raises VmFenced."""
        self.require(vm, name)
        sent = await self._book.all(vm)
        if not sent:
            return
        unanswered = []
        for each, answered in zip(
            sent,
            await asyncio.gather(*(self._ask(each, name, START_SECONDS) for each in sent)),
            strict=True,
        ):
            if not answered:
                unanswered.append(each.peer)
        self.require(vm, name)
        if unanswered:
            data = {"id": vm, "unanswered": unanswered}
            await self._events.emit("replica.started-unasked", name, data)

    def require(self, vm: str, name: str) -> None:
        """Whether a VM may run here, as far as is known. Raises VmFenced."""
        known = self._turns.known(vm)
        if known is None or known.turn in RUNS:
            return
        if known.turn is Turn.HANDING_OVER:
            raise VmFenced(
                f"VM {name!r} is failing over to another host",
                value=name,
                cure="Wait until that has ended; cancel its operation to keep the VM here.",
            )
        raise VmFenced(
            f"VM {name!r} has failed over to another host (term {known.term})",
            value=name,
            cure="Leave it off: this host becomes its replica. If the VM over there is gone for good, take it"
            f" back with `holdfast replica reclaim {name}`.",
        )

    async def keep(self) -> None:
        """Ask about what is not being sent, for ever."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("whose turn it is could not be found out")
            await asyncio.sleep(_ROUND_SECONDS)

    async def look(self) -> None:
        """Ask once about all that it is worth to ask about."""
        silent: set[str] = set()
        for each in await self._book.all():
            known = self._turns.known(each.vm)
            if each.peer in silent or (known is not None and known.turn not in _SEEN):
                continue
            local = await self._find(each.vm)
            if local.running and self._sends(each.id) and (known is None or known.turn is Turn.PRIMARY):
                continue
            if not await self._ask(each, local.name, _ASK_SECONDS):
                silent.add(each.peer)

    async def _ask(self, sent: Replication, name: str, limit: float) -> bool:
        """False: no answer came."""
        known = self._turns.known(sent.vm)
        turn = known.turn if known else Turn.PRIMARY
        try:
            peer = await self._peers.get(sent.peer)
            answer = await self._asker.ask(
                peer, Query(vm=sent.vm, turn=turn, term=self._turns.term(sent.vm)), limit
            )
        except PeerNotFound:
            return True
        except (HoldfastError, OSError):
            return False
        await self.heard(sent.vm, name, peer, answer)
        return True

    async def heard(self, vm: str, name: str, peer: ReplicaPeer, answer: TurnIs) -> TurnRecord | None:
        """What a receiver said of its turn; returns ours. Only what is newer than what is known counts."""
        before = self._turns.known(vm)

        def decide(_: object, known: TurnRecord | None) -> TurnRecord | None:
            ours = known or _own(vm, name, peer)
            if ours.turn not in _SEEN:
                return None
            theirs = answer.turn in RUNS
            if (theirs or answer.sender) and answer.term > ours.term:
                return moved(
                    ours,
                    Turn.FENCED,
                    term=answer.term,
                    # What a third host says of another one is not final: that one is asked.
                    peer=peer.fingerprint if theirs else answer.sender,
                    committed=theirs and answer.turn is Turn.PRIMARY,
                    others={},
                )
            if ours.turn is not Turn.FENCED or ours.peer != peer.fingerprint or answer.term < ours.term:
                return None
            if theirs:
                return ours.model_copy(update={"committed": answer.turn is Turn.PRIMARY})
            return moved(ours, Turn.PRIMARY, term=answer.term, committed=False)

        after = await self._turns.decide(vm, decide)
        if after is not None and after.turn is Turn.FENCED and (before is None or before.turn != after.turn):
            await self._tell(vm, peer, after)
        return after

    async def _tell(self, vm: str, peer: ReplicaPeer, fenced: TurnRecord) -> None:
        local = await self._find(vm)
        kind = "replica.both-run" if local.running else "replica.fenced"
        await self._events.emit(kind, local.name, {"id": vm, "peer": peer.name, "term": fenced.term})
        log.warning("a VM has failed over to another host", vm=local.name, peer=peer.name, runs=local.running)

    async def reclaim(self, vm: str, name: str) -> TurnRecord:
        """The VM over there is gone, as a person says: it is this host's again, by a higher term."""

        def decide(_: object, known: TurnRecord | None) -> TurnRecord | None:
            if known is None or known.turn is Turn.PRIMARY:
                return known
            if known.turn is not Turn.FENCED:
                raise VmFenced(
                    f"VM {name!r} cannot be taken back while it is {known.turn}",
                    value=str(known.turn),
                    cure="Cancel the failover, or fail over back to this host.",
                )
            return moved(known, Turn.PRIMARY, term=known.term + 1, committed=False)

        found = await self._turns.decide(vm, decide)
        return found or TurnRecord(
            vm=vm, name=name, turn=Turn.PRIMARY, term=FIRST_TERM, peer="", since=aware(now())
        )


def _own(vm: str, name: str, peer: ReplicaPeer) -> TurnRecord:
    return TurnRecord(
        vm=vm, name=name, turn=Turn.PRIMARY, term=FIRST_TERM, peer=peer.fingerprint, since=aware(now())
    )
