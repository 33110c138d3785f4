"""The stored form of VMs: rows in, frozen records out, and every change with its event.

State changes go through `change`, in one transaction with the event that tells of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware, now
from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import VmRow
from holdfast.spec.errors import Conflict, NotFound
from holdfast.spec.paging import BadSort, Page, PageQuery
from holdfast.spec.vm import Acceleration, UefiBoot, VmSpec, VmState
from holdfast.spec.vm_view import FailureView, GuestView, VmSummary

Change = Callable[[VmSpec], VmSpec]
_SORTS = {"name", "state", "cpus", "memory", "created"}


class VmNotFound(NotFound):
    id = "vm-not-found"


class VmNameTaken(Conflict):
    id = "vm-name-taken"


class TpmIdentityInUse(Conflict):
    id = "tpm-identity-in-use"


@dataclass(frozen=True)
class VmRecord:
    """A VM as it is stored, at one moment."""

    id: str
    name: str
    number: int
    state: VmState
    spec: VmSpec
    running_spec: VmSpec | None
    machine_type: str | None
    acceleration: Acceleration | None
    addresses: tuple[str, ...]
    guest: GuestView | None
    created: datetime
    started: datetime | None
    boot_seconds: float | None
    failure: FailureView | None
    operation: str | None


def to_record(row: VmRow) -> VmRecord:
    return VmRecord(
        id=row.id,
        name=row.name,
        number=row.number,
        state=VmState(row.state),
        spec=VmSpec.model_validate(row.spec),
        running_spec=VmSpec.model_validate(row.running_spec) if row.running_spec else None,
        machine_type=row.machine_type,
        acceleration=Acceleration(row.acceleration) if row.acceleration else None,
        addresses=tuple(row.addresses),
        guest=GuestView.model_validate(row.guest) if row.guest else None,
        created=aware(row.created),
        started=aware(row.started) if row.started else None,
        boot_seconds=row.boot_seconds,
        failure=FailureView.model_validate(row.failure) if row.failure else None,
        operation=row.operation,
    )


def by_name(session: Session, name: str) -> VmRow:
    """The row of a name (in any case) or an id."""
    row = session.scalar(select(VmRow).where((VmRow.name == name) | (VmRow.id == name)))
    if row is None:
        raise VmNotFound(
            f"there is no VM {name[:64]!r}",
            value=name[:64],
            cure="List the VMs with `holdfast vm list`.",
        )
    return row


def by_id(session: Session, vm_id: str) -> VmRow:
    row = session.get(VmRow, vm_id)
    if row is None:
        raise VmNotFound(f"there is no VM with the id {vm_id}", value=vm_id)
    return row


def insert(session: Session, vm_id: str, name: str, spec: VmSpec, operation: str | None) -> VmRow:
    """Reserve a name, and a number that no other VM has."""
    require_free(session, name)
    row = VmRow(
        id=vm_id,
        name=name,
        number=_free_number(session),
        state=VmState.OFF,
        cpus=spec.cpus,
        memory=spec.memory,
        created=now(),
        spec=spec.model_dump(mode="json"),
        addresses=[],
        operation=operation,
    )
    session.add(row)
    return row


def require_free(session: Session, name: str) -> None:
    taken = session.scalar(select(VmRow).where(VmRow.name == name))
    if taken is not None:
        raise VmNameTaken(
            f"there is already a VM named {taken.name!r}", value=name, cure="Choose another name."
        )


def tpm_identity(spec: VmSpec, vm_id: str) -> str | None:
    """Id of the VM that the TPM was made for; None: there is no TPM."""
    boot = spec.boot
    return boot.tpm_identity or vm_id if isinstance(boot, UefiBoot) and boot.tpm else None


def require_lone_identity(session: Session, record: VmRecord) -> None:
    """No other VM with the same TPM identity may be running. Raises TpmIdentityInUse."""
    identity = tpm_identity(record.spec, record.id)
    if identity is None:
        return
    taken_over = VmRow.spec["boot"]["tpm_identity"].as_string()
    other = session.scalar(
        select(VmRow).where(
            VmRow.id != record.id,
            VmRow.state.not_in((VmState.OFF, VmState.FAILED, VmState.SAVED)),
            (taken_over == identity) | ((VmRow.id == identity) & taken_over.is_(None)),
        )
    )
    if other is not None:
        raise TpmIdentityInUse(
            f"VM {other.name!r} has the same TPM identity as {record.name!r}, and it is {other.state}",
            value=other.name,
            cure=f"Stop {other.name!r} first; delete the one of the two that is no more needed.",
        )


def _free_number(session: Session) -> int:
    """The least number not in use, so that the range of uids never runs out."""
    taken = set(session.scalars(select(VmRow.number)))
    return next(number for number in range(1, len(taken) + 2) if number not in taken)


def set_spec(row: VmRow, spec: VmSpec) -> None:
    row.spec = spec.model_dump(mode="json")
    row.cpus = spec.cpus
    row.memory = spec.memory


def own_specs(record: VmRecord) -> list[VmSpec]:
    """What holds at the next start, and what the machine under way is of."""
    return [record.spec, *([record.running_spec] if record.running_spec else [])]


def change_spec(row: VmRow, change: Change) -> None:
    """Change what holds at the next start."""
    set_spec(row, change(VmSpec.model_validate(row.spec)))


def change_running(row: VmRow, change: Change) -> None:
    """Change what is recorded of the machine under way; nothing happens where there is none."""
    if row.running_spec:
        row.running_spec = change(VmSpec.model_validate(row.running_spec)).model_dump(mode="json")


def change_both(row: VmRow, change: Change) -> None:
    change_spec(row, change)
    change_running(row, change)


def page(session: Session, query: PageQuery, state: VmState | None) -> Page[VmSummary]:
    key = query.sort.lstrip("-")
    if key not in _SORTS:
        raise BadSort(
            f"VMs cannot be sorted by {key!r}", value=key, cure=f"Use one of {', '.join(sorted(_SORTS))}."
        )
    column = getattr(VmRow, key)
    # Only the columns of a line: the specification is a large JSON text.
    fields = (
        VmRow.id,
        VmRow.name,
        VmRow.state,
        VmRow.cpus,
        VmRow.memory,
        VmRow.acceleration,
        VmRow.addresses,
        VmRow.created,
        VmRow.operation,
    )
    conditions = []
    if state is not None:
        conditions.append(VmRow.state == state)
    if query.filter:
        if "*" in query.filter or "?" in query.filter:
            conditions.append(func.lower(VmRow.name).op("GLOB")(query.filter.lower().replace("[", "[[]")))
        else:
            conditions.append(VmRow.name.icontains(query.filter, autoescape=True))
    total = session.scalar(select(func.count(VmRow.id)).where(*conditions)) or 0
    order = (column.desc() if query.sort.startswith("-") else column.asc(), VmRow.id)
    statement = select(*fields).where(*conditions).order_by(*order).offset(query.offset).limit(query.limit)
    items = tuple(
        VmSummary(
            id=row.id,
            name=row.name,
            state=VmState(row.state),
            cpus=row.cpus,
            memory=row.memory,
            acceleration=Acceleration(row.acceleration) if row.acceleration else None,
            addresses=tuple(row.addresses),
            created=aware(row.created),
            operation=row.operation,
        )
        for row in session.execute(statement)
    )
    return Page(items=items, total=total, offset=query.offset, limit=query.limit)


class VmRecords:
    """Reads and changes rows; each change is one transaction with its event."""

    def __init__(self, catalog: Catalog, events: EventLog) -> None:
        self._catalog = catalog
        self._events = events

    async def get(self, name: str) -> VmRecord:
        return await self._catalog.read(lambda session: to_record(by_name(session, name)))

    async def all(self) -> list[VmRecord]:
        return await self._catalog.read(
            lambda session: [to_record(row) for row in session.scalars(select(VmRow).order_by(VmRow.number))]
        )

    async def require_lone_identity(self, record: VmRecord) -> None:
        """As the function of this name."""
        await self._catalog.read(lambda session: require_lone_identity(session, record))

    async def page(self, query: PageQuery, state: VmState | None) -> Page[VmSummary]:
        return await self._catalog.read(lambda session: page(session, query, state))

    async def count_by_state(self) -> dict[str, int]:
        statement = select(VmRow.state, func.count(VmRow.id)).group_by(VmRow.state)
        return await self._catalog.read(
            lambda session: {row[0]: row[1] for row in session.execute(statement)}
        )

    async def change(
        self,
        vm_id: str,
        change: Callable[[VmRow], None],
        event: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> VmRecord:
        """Apply `change` to the row, tell it as `event`, and return the new record."""

        def store(session: Session) -> VmRecord:
            row = by_id(session, vm_id)
            before = row.state
            change(row)
            if event:
                self._events.append(
                    session, event, row.name, {"id": row.id, "state": row.state, **(data or {})}
                )
            elif row.state != before:
                self._events.append(session, "vm.state", row.name, {"id": row.id, "state": row.state})
            return to_record(row)

        return await self._catalog.write(store)

    async def remove(self, vm_id: str) -> None:
        def store(session: Session) -> None:
            row = session.get(VmRow, vm_id)
            if row is not None:
                self._events.append(session, "vm.deleted", row.name, {"id": row.id})
                session.delete(row)

        await self._catalog.write(store)
