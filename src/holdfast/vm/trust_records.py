"""The stored form of VMs' trust: enrolment, policy, interval, and the history of verdicts.

A verdict is stored in one transaction with the event that tells of a change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware, now
from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import TrustRow, VerdictRow, VmRow
from holdfast.spec.attestation import VmVerdict
from holdfast.spec.paging import Page, PageQuery
from holdfast.spec.trust import Severity, TrustPolicy, Verdict
from holdfast.vm.records import by_id

KEPT_VERDICTS = 500
"""Of each VM; older ones are forgotten."""


@dataclass(frozen=True)
class StoredEnrolment:
    endorsement: str
    """SHA-256 of the SubjectPublicKeyInfo, hexadecimal."""
    attestation_key: bytes
    """TPMT_PUBLIC."""
    time: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class TrustRecord:
    """What is stored of one VM's trust, at one moment."""

    enrolment: StoredEnrolment | None
    policy: TrustPolicy
    interval_seconds: int | None


class TrustRecords:
    def __init__(self, catalog: Catalog, events: EventLog) -> None:
        self._catalog = catalog
        self._events = events

    async def get(self, vm_id: str) -> TrustRecord:
        return await self._catalog.read(lambda session: _record(session.get(TrustRow, vm_id)))

    async def change(self, vm_id: str, change: Callable[[TrustRow], None], event: str) -> TrustRecord:
        """Apply `change` to the VM's row, made where there is none, and tell it as `event`."""

        def store(session: Session) -> TrustRecord:
            vm = by_id(session, vm_id)
            row = session.get(TrustRow, vm_id) or TrustRow(vm=vm_id)
            change(row)
            session.add(row)
            self._events.append(session, event, vm.name, {"id": vm_id})
            return _record(row)

        return await self._catalog.write(store)

    async def intervals(self) -> dict[str, int]:
        """VMs that are attested again and again: id to seconds."""
        statement = select(TrustRow.vm, TrustRow.interval_seconds).where(
            TrustRow.interval_seconds.is_not(None)
        )
        return await self._catalog.read(
            lambda session: {row[0]: row[1] for row in session.execute(statement) if row[1] is not None}
        )

    async def add(self, vm_id: str, verdict: Verdict) -> VmVerdict:
        """Keep a verdict; where it is another than the last, an event says so."""

        def store(session: Session) -> VmVerdict:
            vm = by_id(session, vm_id)
            before = _last(session, vm_id)
            row = VerdictRow(
                vm=vm_id, time=now(), verdict=verdict.verdict, body=verdict.model_dump(mode="json")
            )
            session.add(row)
            session.flush()
            if before is None or before.verdict != verdict.verdict:
                self._events.append(session, "trust.verdict-changed", vm.name, _told(before, verdict))
            _forget_old(session, vm_id)
            return _verdict(row, vm.name)

        return await self._catalog.write(store)

    async def last(self, vm_id: str) -> VmVerdict | None:
        def query(session: Session) -> VmVerdict | None:
            row = _last(session, vm_id)
            return _verdict(row, by_id(session, vm_id).name) if row else None

        return await self._catalog.read(query)

    async def history(self, vm_id: str, query: PageQuery) -> Page[VmVerdict]:
        """The newest first, whatever order is asked for."""

        def read(session: Session) -> Page[VmVerdict]:
            name = by_id(session, vm_id).name
            total = session.scalar(select(func.count()).where(VerdictRow.vm == vm_id)) or 0
            chosen = _newest(vm_id).offset(query.offset).limit(query.limit)
            items = tuple(_verdict(row, name) for row in session.scalars(chosen))
            return Page(items=items, total=total, offset=query.offset, limit=query.limit)

        return await self._catalog.read(read)

    async def passed(self) -> dict[str, bool]:
        """The last verdict on each VM that has one, by the VM's name."""
        newest = select(func.max(VerdictRow.number)).group_by(VerdictRow.vm).scalar_subquery()
        statement = (
            select(VmRow.name, VerdictRow.verdict)
            .join(VerdictRow, VerdictRow.vm == VmRow.id)
            .where(VerdictRow.number.in_(newest))
        )
        return await self._catalog.read(
            lambda session: {row[0]: row[1] == "pass" for row in session.execute(statement)}
        )


def _newest(vm_id: str) -> Any:
    return select(VerdictRow).where(VerdictRow.vm == vm_id).order_by(VerdictRow.number.desc())


def _last(session: Session, vm_id: str) -> VerdictRow | None:
    found: VerdictRow | None = session.scalar(_newest(vm_id).limit(1))
    return found


def _forget_old(session: Session, vm_id: str) -> None:
    oldest = session.scalar(
        _newest(vm_id).with_only_columns(VerdictRow.number).offset(KEPT_VERDICTS).limit(1)
    )
    if oldest is not None:
        session.execute(delete(VerdictRow).where(VerdictRow.vm == vm_id, VerdictRow.number <= oldest))


def _told(before: VerdictRow | None, verdict: Verdict) -> dict[str, Any]:
    failures = [each.id for each in verdict.findings if each.severity is Severity.FAILURE]
    return {"before": before.verdict if before else None, "verdict": verdict.verdict, "failures": failures}


def _verdict(row: VerdictRow, name: str) -> VmVerdict:
    return VmVerdict(**row.body, number=row.number, vm=name, time=aware(row.time))


def _record(row: TrustRow | None) -> TrustRecord:
    if row is None:
        return TrustRecord(None, TrustPolicy(), None)
    kept = row.enrolment
    return TrustRecord(
        enrolment=StoredEnrolment(kept["endorsement"], bytes.fromhex(kept["attestation_key"]), kept["time"])
        if kept
        else None,
        policy=TrustPolicy.model_validate(row.policy) if row.policy else TrustPolicy(),
        interval_seconds=row.interval_seconds,
    )
