"""What this host sends: where to, and how. Owner of the records: `ReplicationBook`.

There are two of them: one of this host's VMs, and one of the replicas that it holds and sends on.
"""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import ReplicaRow, ReplicationRow, SentRow, VmRow
from holdfast.replication.capture import Carried
from holdfast.spec.errors import Conflict, NotFound
from holdfast.spec.model import Frozen
from holdfast.spec.replica import ReplicaEnable


class AlreadyReplicated(Conflict):
    id = "replica-enabled-already"


class NotReplicated(NotFound):
    id = "replica-not-enabled"


class SeveralPeers(Conflict):
    """The VM is replicated to several, and it was not said which of them is meant."""

    id = "replica-several-peers"


class Replication(Frozen):
    id: str
    """Made anew each time that replication of a VM is enabled."""
    vm: str
    """Its id."""
    settings: ReplicaEnable
    enabled: datetime
    initial: bool = False
    """Whether the receiver once held a whole cycle."""
    full_copies: int = 0
    """The initial one not counted."""
    carried: Carried | None = None
    """What a machine that ended left of its maps; of use once."""
    at_rest: str = ""
    """`resting.digest_of` the VM while it is off, all of it being over there; empty: it is not."""
    rest_cycle: int = 0
    """The cycle that all of it came by."""
    paused: bool = False
    freezing: bool = False
    """The guest's file systems may stand still for a cycle, and have to be let go."""

    @property
    def peer(self) -> str:
        return self.settings.peer


class ReplicationBook:
    """A VM may be replicated to several peers. Raises NotReplicated where one is gone, or was made anew."""

    def __init__(self, catalog: Catalog, events: EventLog, table: type[SentRow] = ReplicationRow) -> None:
        self._catalog = catalog
        self._events = events
        self._table = table

    async def add(self, replication: Replication) -> None:
        """Raises AlreadyReplicated."""

        def store(session: Session) -> None:
            row = session.get(self._table, (replication.vm, replication.peer))
            if row is not None:
                raise AlreadyReplicated(
                    f"the VM is replicated to {row.peer!r} already",
                    value=row.peer,
                    cure="Change that with `holdfast replica set VM --to PEER`, or disable it first.",
                )
            record = replication.model_dump(mode="json")
            session.add(self._table(vm=replication.vm, peer=replication.peer, record=record))
            data = {"peer": replication.peer, "replication": replication.id}
            self._events.append(session, "replica.enabled", _name(session, replication.vm), data)

        await self._catalog.write(store)

    async def arrived(self, replication: Replication, *, full: bool) -> Replication:
        """A first cycle, or a full copy, is whole over there."""

        def change(before: Replication) -> Replication:
            count = before.full_copies + (full and before.initial)
            return before.model_copy(update={"initial": True, "full_copies": count})

        kind = "replica.initial-copy-done" if not replication.initial else "replica.full-copy-done"
        return await self._change(replication, change, kind)

    async def carry(self, replication: Replication, carried: Carried | None) -> Replication:
        """Remember, or forget, what a machine left of its maps."""
        return await self._update(replication, {"carried": carried, "at_rest": ""})

    async def rest(self, replication: Replication, digest: str, cycle: int) -> Replication:
        """The VM is off, and all of it is over there, by that cycle."""
        return await self._update(replication, {"at_rest": digest, "rest_cycle": cycle})

    async def planted(self, replication: Replication, carried: Carried) -> Replication:
        """The disks of a VM that is off have maps for its next machine."""
        return await self._update(replication, {"carried": carried})

    async def pause(self, replication: Replication, *, paused: bool) -> Replication:
        event = "replica.paused" if paused else "replica.unpaused"
        return await self._update(replication, {"paused": paused}, event)

    async def freezing(self, replication: Replication, *, freezing: bool) -> Replication:
        return await self._update(replication, {"freezing": freezing})

    async def set(self, replication: Replication, settings: ReplicaEnable) -> Replication:
        return await self._update(replication, {"settings": settings}, "replica.changed")

    async def _update(
        self, replication: Replication, change: dict[str, object], event: str | None = None
    ) -> Replication:
        return await self._change(replication, lambda before: before.model_copy(update=change), event)

    async def _change(
        self,
        replication: Replication,
        change: Callable[[Replication], Replication],
        event: str | None = None,
    ) -> Replication:
        def store(session: Session) -> Replication:
            row = self._row(session, replication)
            after = change(Replication.model_validate(row.record))
            row.record = after.model_dump(mode="json")
            if event:
                self._events.append(session, event, _name(session, row.vm), {"peer": row.peer})
            return after

        return await self._catalog.write(store)

    async def of(self, vm: str, peer: str | None = None) -> Replication:
        """That of a VM's id to a peer; None: the only one. Raises NotReplicated, SeveralPeers."""
        found = await self.all(vm)
        if peer is not None:
            found = tuple(each for each in found if each.peer.lower() == peer.lower())
        if not found:
            name = await self._catalog.read(lambda session: _name(session, vm))
            raise _missing(name, peer)
        if len(found) > 1:
            peers = [each.peer for each in found]
            raise SeveralPeers(
                f"the VM is replicated to {', '.join(peers)}", value=peers, cure="Say which with --to PEER."
            )
        return found[0]

    async def all(self, vm: str | None = None) -> tuple[Replication, ...]:
        """Of one VM's id, or of all VMs; by VM and peer."""

        def load(session: Session) -> tuple[Replication, ...]:
            table = self._table
            wanted = select(table).order_by(table.vm, table.peer)
            if vm is not None:
                wanted = wanted.where(table.vm == vm)
            return tuple(Replication.model_validate(row.record) for row in session.scalars(wanted))

        return await self._catalog.read(load)

    async def remove(self, replication: Replication) -> None:
        def store(session: Session) -> None:
            row = self._row(session, replication)
            session.delete(row)
            self._events.append(session, "replica.disabled", _name(session, row.vm), {"peer": row.peer})

        await self._catalog.write(store)

    async def become(self, replication: Replication) -> bool:
        """Of a replica that was sent on, whose VM is this host's now: it is that of the VM from now on.

        False: the VM is replicated to that peer already, and the record is dropped.
        """

        def store(session: Session) -> bool:
            row = self._row(session, replication)
            session.delete(row)
            if session.get(ReplicationRow, (row.vm, row.peer)) is not None:
                return False
            session.add(ReplicationRow(vm=row.vm, peer=row.peer, record=row.record))
            data = {"peer": row.peer, "replication": replication.id}
            self._events.append(session, "replica.enabled", _name(session, row.vm), data)
            return True

        return await self._catalog.write(store)

    def _row(self, session: Session, replication: Replication) -> SentRow:
        row = session.get(self._table, (replication.vm, replication.peer))
        if row is None or row.record["id"] != replication.id:
            raise _missing(_name(session, replication.vm), replication.peer)
        return row


def _missing(name: str, peer: str | None) -> NotReplicated:
    return NotReplicated(
        f"VM {name!r} is not replicated" + (f" to {peer!r}" if peer else ""),
        value=name,
        cure="Enable it with `holdfast replica enable VM --to PEER`.",
    )


def _name(session: Session, vm: str) -> str:
    row = session.get(VmRow, vm)
    if row is not None:
        return row.name
    return session.scalar(select(ReplicaRow.name).where(ReplicaRow.vm == vm)) or vm
