"""The VMs of other hosts that this one holds: who sends each, under which name it lies here, what is kept.

Owner of the records: `ReplicaBook`. What is in a replica's folder is the store's.
"""

import shlex

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import ReplicaRow
from holdfast.replication.turns import FIRST_TERM, require_receivable
from holdfast.replication.wire import Open
from holdfast.spec.errors import Conflict, Forbidden, Insufficient, NotFound
from holdfast.spec.model import Frozen
from holdfast.spec.names import MAX_NAME, Name
from holdfast.spec.replica import ReplicaPeer, ReplicaSettings

_MOST_FORMER = 16


class ReplicaOfAnother(Forbidden):
    """Another host sends this VM."""

    id = "replica-of-another-source"


class ReplicaMoved(Conflict):
    """Another host sends the VM, which failed over to it."""

    id = "replica-moved"


class ReplicaLoop(Conflict):
    """A replica would be sent to a host that it came through."""

    id = "replica-loop"


class TooManyReplicas(Insufficient):
    id = "replica-too-many-vms"


class NoSuchReplica(NotFound):
    id = "replica-not-held"


class HeldVm(Frozen):
    name: Name
    """Of its folder."""
    vm: str
    source: str
    """Fingerprint of the host that sends it."""
    replication: str
    points: str
    """The plan by which points are kept."""
    term: int = FIRST_TERM
    """The highest that the source told."""
    agreed: ReplicaSettings | None = None
    """What was agreed on the source."""
    heir: str = ""
    """Fingerprint of the host that may send it in the source's place; empty: none."""
    heir_term: int = 0
    """That the heir's has to be at least, as the source said; 0: a person said it, and any will do."""
    former: tuple[str, ...] = ()
    """Fingerprints of hosts that sent it before."""
    via: tuple[str, ...] = ()
    """Fingerprints of the hosts that it came through to the source, the VM's own first."""


class ReplicaBook:
    def __init__(self, catalog: Catalog, events: EventLog) -> None:
        self._catalog = catalog
        self._events = events

    async def claim(self, peer: ReplicaPeer, opened: Open) -> tuple[HeldVm, bool]:
        """The record of a VM that a source wants to send, made where there is none yet.

        Returns:
            The record, and whether what is held is of another replication of that VM than this one.

        Raises:
            ReplicaOfAnother, ReplicaMoved, TooManyReplicas, ReplicaFailedOver, ReplicaNotReady
        """

        def store(session: Session) -> tuple[HeldVm, bool]:
            require_receivable(session, opened.vm, opened.name, peer.fingerprint)
            row = session.scalar(select(ReplicaRow).where(ReplicaRow.vm == opened.vm))
            if row is None:
                row = self._made(session, peer, opened)
                before = HeldVm(
                    name=row.name, vm=row.vm, source=row.source, replication=opened.replication, points=""
                )
            else:
                before = _claimed(HeldVm.model_validate(row.record), peer, opened)
            if row.source != peer.fingerprint:
                self._require_room(session, peer)
                row.source = peer.fingerprint
                data = {"vm": row.vm, "source": peer.name, "term": opened.term}
                self._events.append(session, "replica.source-changed", row.name, data)
            change = {
                "points": opened.points,
                "term": max(opened.term, before.term),
                "agreed": opened.agreed,
                "via": opened.via,
            }
            held = before.model_copy(update=change)
            row.record = held.model_dump(mode="json")
            return held, before.replication != opened.replication

        return await self._catalog.write(store)

    async def require_receivable(self, peer: ReplicaPeer, opened: Open) -> None:
        """As the function of this name, of a VM that was claimed before."""
        await self._catalog.read(
            lambda session: require_receivable(session, opened.vm, opened.name, peer.fingerprint)
        )

    async def require_free(self, peer: ReplicaPeer, vm: str, name: str) -> None:
        """Whether a source may have a replica of a VM, by its id and name.

        Raises ReplicaOfAnother, ReplicaFailedOver, ReplicaNotReady.
        """

        def look(session: Session) -> None:
            require_receivable(session, vm, name, peer.fingerprint)
            row = session.scalar(select(ReplicaRow).where(ReplicaRow.vm == vm))
            if row is not None and row.source != peer.fingerprint:
                raise ReplicaOfAnother(f"VM {name!r} is sent here by another host", value=name)

        await self._catalog.read(look)

    async def of_vm(self, vm: str) -> HeldVm | None:
        """The replica of a VM's id, where one is held."""

        def load(session: Session) -> HeldVm | None:
            row = session.scalar(select(ReplicaRow).where(ReplicaRow.vm == vm))
            return HeldVm.model_validate(row.record) if row is not None else None

        return await self._catalog.read(load)

    async def adopt(self, vm: str, name: str, peer: ReplicaPeer) -> HeldVm:
        """A record for a VM of this host that another is going to send from now on."""

        def store(session: Session) -> HeldVm:
            row = session.scalar(select(ReplicaRow).where(ReplicaRow.vm == vm))
            if row is None:
                free = _free_name(session, name, peer.name)
                row = ReplicaRow(name=free, vm=vm, source=peer.fingerprint, record={})
                session.add(row)
                self._events.append(session, "replica.held", row.name, {"vm": vm, "source": peer.name})
            row.source = peer.fingerprint
            # Of no replication, so that all of it is compared before it is changed.
            held = HeldVm(name=row.name, vm=vm, source=peer.fingerprint, replication="", points="")
            row.record = held.model_dump(mode="json")
            return held

        return await self._catalog.write(store)

    async def yield_to(self, vm: str, heir: str, term: int) -> None:
        """The source says that another host may send a VM, by its id, from that term on.

        Raises NoSuchReplica.
        """

        def store(session: Session) -> None:
            row = session.scalar(select(ReplicaRow).where(ReplicaRow.vm == vm))
            if row is None:
                raise NoSuchReplica("this host holds no such replica", value=vm)
            self._inherit(session, row, heir, term)

        await self._catalog.write(store)

    async def accept_from(self, name: str, peer: ReplicaPeer) -> None:
        """A person says that a host may send a replica. Raises NoSuchReplica."""
        await self._catalog.write(
            lambda session: self._inherit(session, _row(session, name), peer.fingerprint, 0)
        )

    def _inherit(self, session: Session, row: ReplicaRow, heir: str, term: int) -> None:
        held = HeldVm.model_validate(row.record)
        if held.source == heir or (held.heir, held.heir_term) == (heir, term):
            return
        row.record = held.model_copy(update={"heir": heir, "heir_term": term}).model_dump(mode="json")
        data = {"vm": row.vm, "to": heir, "term": term}
        self._events.append(session, "replica.source-accepted", row.name, data)

    async def confirm(self, name: str, replication: str) -> None:
        """What is held is of this replication from now on. Raises NoSuchReplica."""

        def store(session: Session) -> None:
            row = _row(session, name)
            row.record = {**row.record, "replication": replication}

        await self._catalog.write(store)

    async def held(self) -> tuple[HeldVm, ...]:
        """All of them, by name."""

        def load(session: Session) -> tuple[HeldVm, ...]:
            rows = session.scalars(select(ReplicaRow).order_by(ReplicaRow.name))
            return tuple(HeldVm.model_validate(row.record) for row in rows)

        return await self._catalog.read(load)

    async def get(self, name: str) -> HeldVm:
        """Raises NoSuchReplica."""

        def load(session: Session) -> HeldVm:
            return HeldVm.model_validate(_row(session, name).record)

        return await self._catalog.read(load)

    async def remove(self, name: str) -> None:
        """Raises NoSuchReplica."""

        def store(session: Session) -> None:
            row = _row(session, name)
            session.delete(row)
            self._events.append(session, "replica.removed", row.name, {"vm": row.vm})

        await self._catalog.write(store)

    @staticmethod
    def _require_room(session: Session, peer: ReplicaPeer) -> None:
        mine = ReplicaRow.source == peer.fingerprint
        count = session.scalar(select(func.count()).select_from(ReplicaRow).where(mine)) or 0
        if count >= peer.limits.vms:
            raise TooManyReplicas(
                f"the receiving host takes {peer.limits.vms} VMs of this host, and has {count}",
                value=peer.limits.vms,
                cure="Pair anew with a token that allows more (`holdfast replica accept --vms`), "
                "or remove a replica there.",
            )

    def _made(self, session: Session, peer: ReplicaPeer, opened: Open) -> ReplicaRow:
        self._require_room(session, peer)
        row = ReplicaRow(
            name=_free_name(session, opened.name, peer.name), vm=opened.vm, source=peer.fingerprint, record={}
        )
        session.add(row)
        self._events.append(session, "replica.held", row.name, {"vm": opened.vm, "source": peer.name})
        return row


def _claimed(held: HeldVm, peer: ReplicaPeer, opened: Open) -> HeldVm:
    """The record of a replica as a source that connects finds it.

    Raises ReplicaOfAnother, ReplicaMoved.
    """
    mine = held.source == peer.fingerprint
    if mine and opened.term >= held.heir_term:
        taken_back = held.heir_term and opened.term > held.heir_term
        return held.model_copy(update={"heir": "", "heir_term": 0}) if taken_back else held
    if not mine and peer.fingerprint == held.heir and opened.term >= held.heir_term:
        former = (held.source, *(each for each in held.former if each not in (held.source, held.heir)))
        change = {"source": held.heir, "former": former[:_MOST_FORMER], "heir": "", "heir_term": 0}
        return held.model_copy(update=change)
    command = f"`holdfast replica accept-from {shlex.quote(held.name)} --peer {shlex.quote(peer.name)}`"
    if mine or peer.fingerprint in held.former:
        raise ReplicaMoved(
            f"VM {opened.name!r} failed over to another host, which sends it here (term {held.term})",
            value=opened.name,
            cure="Disable its replication. Where the VM is to be sent from here again, say so on the"
            f" receiving host: {command}",
            detail={"term": held.term},
        )
    raise ReplicaOfAnother(
        f"VM {opened.name!r} is sent here by another host",
        value=opened.name,
        cure="If it failed over from that host, its word is waited for; where it is lost, say on the"
        f" receiving host: {command}. Points stay, and only what differs is sent.",
    )


def _free_name(session: Session, vm: str, source: str) -> str:
    """The VM's own name; where another host's VM has it, with the host's behind it."""
    if session.get(ReplicaRow, vm) is None:
        return vm
    number = 1
    while True:
        end = f" of {source}" if number == 1 else f" of {source} {number}"
        end = end[: MAX_NAME - 1]
        name = vm[: MAX_NAME - len(end)].rstrip(" .") + end.rstrip(" .")
        if session.get(ReplicaRow, name) is None:
            return name
        number += 1


def _row(session: Session, name: str) -> ReplicaRow:
    row = session.get(ReplicaRow, name)
    if row is None:
        raise NoSuchReplica(
            f"this host holds no replica {name[:64]!r}",
            value=name[:64],
            cure="List them with `holdfast replica list`.",
        )
    return row
