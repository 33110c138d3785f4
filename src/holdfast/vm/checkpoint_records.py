"""The stored form of checkpoints: rows in, frozen trees out.

Changes are functions of a session, to be made in the transaction that changes the VM's own row (through its
owner), so that specification and checkpoints never disagree about the layers that exist.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import CheckpointRow, CheckpointTreeRow
from holdfast.spec.checkpoint import CheckpointSchedule, CheckpointType, CheckpointView
from holdfast.spec.errors import Conflict, NotFound
from holdfast.spec.vm import Acceleration, UefiBoot, VmSpec
from holdfast.vm.records import Change


class CheckpointNotFound(NotFound):
    id = "checkpoint-not-found"


class CheckpointNameTaken(Conflict):
    id = "checkpoint-name-taken"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it is stored."""

    id: str
    name: str
    parent: str | None
    """Id of another one."""
    type: CheckpointType
    notes: str
    created: datetime
    spec: VmSpec
    running_spec: VmSpec | None
    machine_type: str | None
    acceleration: Acceleration | None
    size: int
    stall_seconds: float | None
    scheduled: bool

    @property
    def has_memory(self) -> bool:
        return self.running_spec is not None

    @property
    def specs(self) -> tuple[VmSpec, ...]:
        return (self.spec, self.running_spec) if self.running_spec else (self.spec,)


@dataclass(frozen=True)
class CheckpointTree:
    """All checkpoints of a VM, the oldest first."""

    checkpoints: tuple[Checkpoint, ...] = ()
    current: str | None = None
    schedule: CheckpointSchedule = field(default_factory=CheckpointSchedule)

    def named(self, name: str) -> Checkpoint:
        """By its name, in any case, or its id. Raises CheckpointNotFound."""
        for each in self.checkpoints:
            if each.name.lower() == name.lower() or each.id == name:
                return each
        raise CheckpointNotFound(
            f"there is no checkpoint {name[:64]!r}",
            value=name[:64],
            cure="List them with `holdfast checkpoint list VM`.",
        )

    def require_free(self, name: str) -> None:
        """Raises CheckpointNameTaken."""
        if any(each.name.lower() == name.lower() for each in self.checkpoints):
            raise CheckpointNameTaken(
                f"there is already a checkpoint {name!r}", value=name, cure="Choose another name."
            )

    def subtree(self, checkpoint: Checkpoint) -> tuple[Checkpoint, ...]:
        """A checkpoint and all that came from it."""
        found = {checkpoint.id}
        for each in self.checkpoints:  # a parent is older than its children
            if each.parent in found:
                found.add(each.id)
        return tuple(each for each in self.checkpoints if each.id in found)

    def specs(self) -> Iterator[VmSpec]:
        for each in self.checkpoints:
            yield from each.specs

    def views(self) -> tuple[CheckpointView, ...]:
        names = {each.id: each.name for each in self.checkpoints}
        return tuple(
            CheckpointView(
                id=each.id,
                name=each.name,
                parent=names.get(each.parent) if each.parent else None,
                type=each.type,
                created=each.created,
                current=each.id == self.current,
                notes=each.notes,
                has_memory=each.has_memory,
                has_firmware_state=isinstance(each.spec.boot, UefiBoot),
                size=each.size,
                stall_seconds=each.stall_seconds,
                scheduled=each.scheduled,
            )
            for each in self.checkpoints
        )


def tree_of(session: Session, vm_id: str) -> CheckpointTree:
    tree = session.get(CheckpointTreeRow, vm_id)
    return CheckpointTree(
        checkpoints=tuple(_read(row) for row in _rows(session, vm_id)),
        current=tree.current if tree else None,
        schedule=CheckpointSchedule.model_validate(tree.schedule)
        if tree and tree.schedule
        else CheckpointSchedule(),
    )


def insert(session: Session, vm_id: str, checkpoint: Checkpoint) -> None:
    """Store a checkpoint, which is the current one from now on. Nothing happens where it is stored."""
    if session.get(CheckpointRow, checkpoint.id) is not None:
        return
    tree = _tree(session, vm_id)
    session.add(
        CheckpointRow(
            id=checkpoint.id,
            vm=vm_id,
            name=checkpoint.name,
            parent=tree.current,
            type=checkpoint.type,
            notes=checkpoint.notes,
            created=checkpoint.created.replace(tzinfo=None),
            spec=checkpoint.spec.model_dump(mode="json"),
            running_spec=_dumped(checkpoint.running_spec),
            machine_type=checkpoint.machine_type,
            acceleration=checkpoint.acceleration,
            size=checkpoint.size,
            stall_seconds=checkpoint.stall_seconds,
            scheduled=checkpoint.scheduled,
        )
    )
    tree.current = checkpoint.id


def remove(session: Session, vm_id: str, ids: frozenset[str]) -> None:
    """Forget checkpoints; what came from them comes from the next one above that stays."""
    rows = {row.id: row for row in _rows(session, vm_id)}

    def staying(found: str | None) -> str | None:
        while found in ids:
            found = rows[found].parent if found in rows else None
        return found

    for row in rows.values():
        row.parent = staying(row.parent)
    tree = _tree(session, vm_id)
    tree.current = staying(tree.current)
    for row_id in ids & rows.keys():
        session.delete(rows[row_id])


def change_specs(session: Session, vm_id: str, change: Change) -> None:
    """Change the specifications that a VM's checkpoints keep."""
    for row in _rows(session, vm_id):
        row.spec = change(VmSpec.model_validate(row.spec)).model_dump(mode="json")
        if row.running_spec:
            row.running_spec = change(VmSpec.model_validate(row.running_spec)).model_dump(mode="json")


def set_current(session: Session, vm_id: str, checkpoint: str | None) -> None:
    _tree(session, vm_id).current = checkpoint


class CheckpointRecords:
    """Reads trees, and changes what concerns no layer."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def tree(self, vm_id: str) -> CheckpointTree:
        return await self._catalog.read(lambda session: tree_of(session, vm_id))

    async def schedules(self) -> dict[str, CheckpointSchedule]:
        """Of each VM's id that has one that makes checkpoints."""

        def query(session: Session) -> dict[str, CheckpointSchedule]:
            rows = session.scalars(select(CheckpointTreeRow))
            found = {row.vm: CheckpointSchedule.model_validate(row.schedule) for row in rows if row.schedule}
            return {vm: schedule for vm, schedule in found.items() if schedule.every_seconds is not None}

        return await self._catalog.read(query)

    async def set_schedule(self, vm_id: str, schedule: CheckpointSchedule) -> None:
        def store(session: Session) -> None:
            _tree(session, vm_id).schedule = schedule.model_dump(mode="json")

        await self._catalog.write(store)

    async def describe(self, checkpoint: str, name: str | None, notes: str | None) -> None:
        """Give a checkpoint another name or other notes."""

        def store(session: Session) -> None:
            row = session.get(CheckpointRow, checkpoint)
            if row is not None:
                row.name = name if name is not None else row.name
                row.notes = notes if notes is not None else row.notes

        await self._catalog.write(store)


def _rows(session: Session, vm_id: str) -> list[CheckpointRow]:
    statement = select(CheckpointRow).where(CheckpointRow.vm == vm_id)
    return list(session.scalars(statement.order_by(CheckpointRow.created, CheckpointRow.id)))


def _tree(session: Session, vm_id: str) -> CheckpointTreeRow:
    row = session.get(CheckpointTreeRow, vm_id)
    if row is None:
        row = CheckpointTreeRow(vm=vm_id)
        session.add(row)
    return row


def _read(row: CheckpointRow) -> Checkpoint:
    return Checkpoint(
        id=row.id,
        name=row.name,
        parent=row.parent,
        type=CheckpointType(row.type),
        notes=row.notes,
        created=aware(row.created),
        spec=VmSpec.model_validate(row.spec),
        running_spec=VmSpec.model_validate(row.running_spec) if row.running_spec else None,
        machine_type=row.machine_type,
        acceleration=Acceleration(row.acceleration) if row.acceleration else None,
        size=row.size,
        stall_seconds=row.stall_seconds,
        scheduled=row.scheduled,
    )


def _dumped(spec: VmSpec | None) -> dict[str, object] | None:
    return spec.model_dump(mode="json") if spec else None
