"""The VMs of this host that are replicated: where to, and how. Owner of the records: `ReplicationBook`."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import ReplicationRow, VmRow
from holdfast.replication.capture import Carried
from holdfast.spec.errors import Conflict, NotFound
from holdfast.spec.model import Frozen
from holdfast.spec.replica import ReplicaEnable


class AlreadyReplicated(Conflict):
    id = "replica-enabled-already"


class NotReplicated(NotFound):
    id = "replica-not-enabled"


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
    """Digest of the specification with which the VM is off, all of it being over there; empty: it is not."""

    rest_cycle: int = 0
    """Number of the cycle by which all of it came there, with `at_rest`; 0: it is not known."""

    @property
    def peer(self) -> str:
        return self.settings.peer


class ReplicationBook:
    def __init__(self, catalog: Catalog, events: EventLog) -> None:
        self._catalog = catalog
        self._events = events

    async def add(self, replication: Replication) -> None:
        """Raises AlreadyReplicated."""

        def store(session: Session) -> None:
            row = session.get(ReplicationRow, replication.vm)
            if row is not None:
                raise AlreadyReplicated(
                    f"the VM is replicated to {row.peer!r} already",
                    value=row.peer,
                    cure="Disable that first (`holdfast replica disable VM`); what is held there stays.",
                )
            session.add(
                ReplicationRow(
                    vm=replication.vm, peer=replication.peer, record=replication.model_dump(mode="json")
                )
            )
            data = {"peer": replication.peer, "replication": replication.id}
            self._events.append(session, "replica.enabled", _name(session, replication.vm), data)

        await self._catalog.write(store)

    async def arrived(self, vm: str, *, full: bool) -> Replication:
        """A first cycle, or a full copy, is whole over there. Raises NotReplicated."""

        def store(session: Session) -> Replication:
            row = _row(session, vm)
            before = Replication.model_validate(row.record)
            count = before.full_copies + (full and before.initial)
            after = before.model_copy(update={"initial": True, "full_copies": count})
            row.record = after.model_dump(mode="json")
            kind = "replica.initial-copy-done" if not before.initial else "replica.full-copy-done"
            self._events.append(session, kind, _name(session, vm), {"peer": row.peer})
            return after

        return await self._catalog.write(store)

    async def carry(self, vm: str, carried: Carried | None) -> Replication:
        """Remember, or forget, what a machine left of its maps. Raises NotReplicated."""
        return await self._change(vm, {"carried": carried, "at_rest": "", "rest_cycle": 0})

    async def rest(self, vm: str, digest: str, cycle: int = 0) -> Replication:
        """The VM is off, and all of it is over there since that cycle. Raises NotReplicated."""
        return await self._change(vm, {"at_rest": digest, "rest_cycle": cycle})

    async def _change(self, vm: str, change: dict[str, object]) -> Replication:

        def store(session: Session) -> Replication:
            row = _row(session, vm)
            after = Replication.model_validate(row.record).model_copy(update=change)
            row.record = after.model_dump(mode="json")
            return after

        return await self._catalog.write(store)

    async def get(self, vm: str) -> Replication:
        """Of a VM's id. Raises NotReplicated."""

        def load(session: Session) -> Replication:
            return Replication.model_validate(_row(session, vm).record)

        return await self._catalog.read(load)

    async def all(self) -> tuple[Replication, ...]:
        def load(session: Session) -> tuple[Replication, ...]:
            rows = session.scalars(select(ReplicationRow).order_by(ReplicationRow.vm))
            return tuple(Replication.model_validate(row.record) for row in rows)

        return await self._catalog.read(load)

    async def remove(self, vm: str) -> None:
        """Raises NotReplicated."""

        def store(session: Session) -> None:
            row = _row(session, vm)
            session.delete(row)
            self._events.append(session, "replica.disabled", _name(session, vm), {"peer": row.peer})

        await self._catalog.write(store)


def _row(session: Session, vm: str) -> ReplicationRow:
    row = session.get(ReplicationRow, vm)
    if row is None:
        name = _name(session, vm)
        raise NotReplicated(
            f"VM {name!r} is not replicated",
            value=name,
            cure="Enable it with `holdfast replica enable VM --to PEER`.",
        )
    return row


def _name(session: Session, vm: str) -> str:
    row = session.get(VmRow, vm)
    return row.name if row is not None else vm
