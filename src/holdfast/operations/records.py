"""The stored form of operations."""

from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware
from holdfast.catalog.tables import OperationRow
from holdfast.spec.errors import NotFound
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.paging import BadSort, Page, PageQuery

_ENDED = [state.value for state in OperationState if state.ended]
_SORTS = {"created", "kind", "subject", "state"}


class OperationNotFound(NotFound):
    id = "operation-not-found"


def to_operation(row: OperationRow) -> Operation:
    return Operation(
        id=row.id,
        kind=row.kind,
        subject=row.subject,
        state=OperationState(row.state),
        phase=row.phase,
        progress=row.progress,
        text=row.text,
        error=row.error,
        result=row.result,
        actor=row.actor,
        created=aware(row.created),
        ended=aware(row.ended) if row.ended else None,
    )


def load(session: Session, operation_id: str) -> OperationRow:
    row = session.get(OperationRow, operation_id)
    if row is None:
        raise OperationNotFound(
            f"there is no operation {operation_id[:64]!r}",
            value=operation_id[:64],
            cure="List them with `holdfast operation list`.",
        )
    return row


def page(session: Session, query: PageQuery, running_only: bool) -> Page[Operation]:
    """One page, newest first unless another order is asked for; the filter matches the subject."""
    key = "-created" if query.sort == "name" else query.sort
    if key.lstrip("-") not in _SORTS:
        raise BadSort(
            f"operations cannot be sorted by {key!r}",
            value=key,
            cure=f"Use one of {', '.join(sorted(_SORTS))}.",
        )
    column = getattr(OperationRow, key.lstrip("-"))
    statement = select(OperationRow)
    if running_only:
        statement = statement.where(OperationRow.state.not_in(_ENDED))
    if query.filter:
        statement = statement.where(OperationRow.subject.icontains(query.filter, autoescape=True))
    total = session.scalar(select(func.count()).select_from(statement.subquery())) or 0
    ordered = statement.order_by(column.desc() if key.startswith("-") else column)
    rows = session.scalars(ordered.offset(query.offset).limit(query.limit))
    return Page(
        items=tuple(to_operation(row) for row in rows), total=total, offset=query.offset, limit=query.limit
    )


def unfinished(session: Session) -> list[str]:
    statement = (
        select(OperationRow.id).where(OperationRow.state.not_in(_ENDED)).order_by(OperationRow.created)
    )
    return list(session.scalars(statement))


def forget_old(session: Session, keep: int) -> list[str]:
    """Drop all but the newest `keep` ended operations; returns the ids dropped."""
    old = select(OperationRow.id).where(OperationRow.state.in_(_ENDED)).order_by(OperationRow.created.desc())
    ids = list(session.scalars(old.offset(keep)))
    session.execute(delete(OperationRow).where(OperationRow.id.in_(ids)))
    return ids


def wire_error(error: dict[str, Any] | None) -> dict[str, Any]:
    return {"error": error} if error else {}
