"""Whose turn it is to run each VM that is replicated, as this host knows it. Owner of these: `TurnBook`.

Each failover makes a term that is higher than any before. A host that hears of a higher one than its own
lets the VM be; one that hears of a lower one does not mind it. What has no record is as it began: a VM of
this host is its own, and what it holds is a replica, both with term 1.
"""

from collections.abc import Callable, Collection
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware, now
from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import ReplicaTurnRow, VmRow
from holdfast.spec.errors import Conflict
from holdfast.spec.model import Frozen
from holdfast.spec.replica import ReplicaSettings
from holdfast.spec.turn import RUNS, Turn

FIRST_TERM = 1


class NotItsTurn(Conflict):
    """What is asked for does not fit whose turn it is."""

    id = "replica-not-its-turn"


class ReplicaFailedOver(Conflict):
    """The VM runs on the host that it is sent to."""

    id = "replica-failed-over"


class ReplicaNotReady(Conflict):
    """The VM's own disks here have not become the base of its replica yet."""

    id = "replica-not-ready"


class TurnRecord(Frozen):
    vm: str
    name: str
    turn: Turn
    term: int
    peer: str
    """Fingerprint of the other host."""
    since: datetime
    replica: str = ""
    """Name of the replica that is held here of it, and not dropped yet."""
    back: ReplicaSettings | None = None
    """How it is replicated back: as it was agreed on the other host."""
    others: dict[str, bool] = {}
    """Of a VM that is fenced: other hosts that it was sent to, by fingerprint, and whether each knows."""
    committed: bool = False
    """Of a VM that is fenced: over there it is final."""
    error: str = ""
    """Why the last failover to this host failed."""


Decide = Callable[[Session, TurnRecord | None], TurnRecord | None]
"""Given what is recorded, gives what is to be; None: as it is. Refuses by raising."""


class TurnBook:
    def __init__(self, catalog: Catalog, events: EventLog) -> None:
        self._catalog = catalog
        self._events = events
        self._known: dict[str, TurnRecord] = {}

    async def load(self) -> None:
        """Before anything else is asked."""

        def read(session: Session) -> dict[str, TurnRecord]:
            rows = session.scalars(select(ReplicaTurnRow))
            return {row.vm: TurnRecord.model_validate(row.record) for row in rows}

        self._known = await self._catalog.read(read)

    def known(self, vm: str) -> TurnRecord | None:
        return self._known.get(vm)

    def term(self, vm: str) -> int:
        found = self._known.get(vm)
        return found.term if found else FIRST_TERM

    def own_term(self, vm: str) -> int:
        """By which it is sent: one that is being handed over is still this host's by the term before."""
        found = self._known.get(vm)
        return self.term(vm) - (found is not None and found.turn is Turn.HANDING_OVER)

    async def read(self, vm: str) -> TurnRecord | None:
        """What holds now, see `read_turn`."""
        return await self._catalog.read(lambda session: read_turn(session, vm))

    def all(self) -> tuple[TurnRecord, ...]:
        return tuple(sorted(self._known.values(), key=lambda each: each.name.lower()))

    async def decide(self, vm: str, decide: Decide) -> TurnRecord | None:
        """Read, decide and store in one transaction; returns what holds then."""
        found = await self._catalog.write(lambda session: self.decided(session, vm, decide))
        return self.learn(vm, found)

    def learn(self, vm: str, found: TurnRecord | None) -> TurnRecord | None:
        """What a transaction that has ended stored."""
        if found is not None:
            self._known[vm] = found
        return found

    def decided(self, session: Session, vm: str, decide: Decide) -> TurnRecord | None:
        """In somebody's transaction; `learn` its result once that has ended."""
        before = read_turn(session, vm)
        after = decide(session, before)
        row = session.get(ReplicaTurnRow, vm)
        if after is None or (row is not None and TurnRecord.model_validate(row.record) == after):
            return before
        if row is None:
            row = ReplicaTurnRow(vm=vm, record={})
            session.add(row)
        row.record = after.model_dump(mode="json")
        if before is None or (before.turn, before.term) != (after.turn, after.term):
            data = {"vm": vm, "turn": after.turn, "term": after.term, "error": after.error}
            self._events.append(session, "replica.turn", after.name, data)
        return after

    async def turn(self, vm: str, to: Turn, came: Collection[Turn], **change: object) -> TurnRecord:
        """From one of the turns `came` to another; nothing happens where it is so already.

        Raises NotItsTurn.
        """

        def decide(_: Session, before: TurnRecord | None) -> TurnRecord:
            if before is None or before.turn not in {*came, to}:
                raise NotItsTurn(
                    f"the VM is {before.turn if before else 'no replica'}; it cannot become {to} now",
                    value=before.turn if before else None,
                    cure="See `holdfast replica turns`.",
                )
            return moved(before, to, **change)

        found = await self.decide(vm, decide)
        assert found is not None  # noqa: S101  (for the type checker: `decide` gives one)
        return found


def require_receivable(session: Session, vm: str, name: str, source: str) -> None:
    """Whether a VM may be received here from `source` (a fingerprint).

    Raises ReplicaFailedOver, ReplicaNotReady.
    """
    found = read_turn(session, vm)
    turn = found.turn if found else Turn.REPLICA
    if found is None and session.get(VmRow, vm) is not None:
        turn = Turn.PRIMARY
    if turn is Turn.REPLICA or (turn is Turn.ADOPTING and found and found.peer == source):
        return
    term = found.term if found else FIRST_TERM
    if turn in (Turn.FENCED, Turn.ADOPTING, Turn.HANDING_OVER):
        raise ReplicaNotReady(
            f"the disks of VM {name!r} are not ready to be the base of its replica",
            value=name,
            cure="It is tried again by itself.",
            detail={"term": term},
        )
    raise ReplicaFailedOver(
        f"VM {name!r} has failed over: it runs on the host that it is sent to (term {term})",
        value=name,
        cure="Leave it off here: once the failover is committed this host becomes the replica by itself.",
        detail={"term": term},
    )


def read_turn(session: Session, vm: str) -> TurnRecord | None:
    """A VM that runs here by its record, and was deleted since, is free to be received."""
    row = session.get(ReplicaTurnRow, vm)
    if row is None:
        return None
    found = TurnRecord.model_validate(row.record)
    gone = session.get(VmRow, vm) is None
    if gone and found.turn in (Turn.PRIMARY, Turn.FENCED, Turn.ADOPTING):
        return found.model_copy(update={"turn": Turn.REPLICA, "committed": False})
    return found


def moved(before: TurnRecord, to: Turn, **change: object) -> TurnRecord:
    since = before.since if before.turn is to else aware(now())
    others = {} if to in RUNS else before.others
    return before.model_copy(update={"turn": to, "since": since, "others": others, **change})
