"""Tests of failovers as they are stored: those under way, the last that ended, and plans for more.

Owner of the records: `FailoverTestBook`.
"""

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import FailoverTestPlanRow, FailoverTestRow
from holdfast.spec.errors import Conflict, NotFound
from holdfast.spec.failover_test import FailoverTest, FailoverTestPhase, FailoverTestPlan

KEPT = 100
"""Ended tests of a replica that are remembered."""


class FailoverTestUnderWay(Conflict):
    id = "failover-test-under-way"


class NoFailoverTest(NotFound):
    id = "failover-test-not-found"


class FailoverTestBook:
    def __init__(self, catalog: Catalog, events: EventLog) -> None:
        self._catalog = catalog
        self._events = events

    async def add(self, test: FailoverTest) -> None:
        """Raises FailoverTestUnderWay."""

        def store(session: Session) -> None:
            mine = (FailoverTestRow.replica == test.replica, FailoverTestRow.ended.is_(False))
            if session.scalar(select(FailoverTestRow).where(*mine)) is not None:
                raise FailoverTestUnderWay(
                    f"replica {test.replica!r} is being tested",
                    value=test.replica,
                    cure=f"Wait for it, or end it with `holdfast replica test {test.replica} --end`.",
                )
            session.add(
                FailoverTestRow(
                    id=test.id,
                    replica=test.replica,
                    started=test.started.astimezone(UTC).replace(tzinfo=None),
                    ended=False,
                    record=test.model_dump(mode="json"),
                )
            )
            self._tell(session, "replica.test-starting", test)

        await self._catalog.write(store)

    async def drop(self, test_id: str) -> None:
        """One that never came to anything."""

        def store(session: Session) -> None:
            row = session.get(FailoverTestRow, test_id)
            if row is not None:
                session.delete(row)

        await self._catalog.write(store)

    async def change(self, test_id: str, **update: object) -> FailoverTest:
        """Raises NoFailoverTest."""

        def store(session: Session) -> FailoverTest:
            row = _row(session, test_id)
            before = FailoverTest.model_validate(row.record)
            after = FailoverTest.model_validate({**before.model_dump(), **update})
            row.record = after.model_dump(mode="json")
            if after.verdict is not None and before.verdict is None:
                self._tell(session, f"replica.test-{after.verdict.value}", after)
            if after.phase is not before.phase:
                self._tell(session, f"replica.test-{after.phase.value}", after)
            if after.phase is FailoverTestPhase.ENDED and not row.ended:
                row.ended = True
                _forget_old(session, row)
            return after

        return await self._catalog.write(store)

    async def get(self, test_id: str) -> FailoverTest:
        """Raises NoFailoverTest."""
        return await self._catalog.read(
            lambda session: FailoverTest.model_validate(_row(session, test_id).record)
        )

    async def current(self, replica: str) -> FailoverTest | None:
        """That of a replica which has not ended."""
        return next((each for each in await self.under_way() if _same(each.replica, replica)), None)

    async def under_way(self) -> tuple[FailoverTest, ...]:
        def load(session: Session) -> tuple[FailoverTest, ...]:
            rows = session.scalars(select(FailoverTestRow).where(FailoverTestRow.ended.is_(False)))
            return tuple(FailoverTest.model_validate(row.record) for row in rows)

        return await self._catalog.read(load)

    async def all(self, replica: str | None) -> tuple[FailoverTest, ...]:
        """The newest first; of one replica, or of all."""

        def load(session: Session) -> tuple[FailoverTest, ...]:
            chosen = () if replica is None else (FailoverTestRow.replica == replica,)
            order = FailoverTestRow.started.desc()
            rows = session.scalars(select(FailoverTestRow).where(*chosen).order_by(order))
            return tuple(FailoverTest.model_validate(row.record) for row in rows)

        return await self._catalog.read(load)

    async def last(self) -> dict[str, datetime]:
        """When each replica was tested last, by its name in lower case."""
        found: dict[str, datetime] = {}
        for each in await self.all(None):
            found.setdefault(each.replica.lower(), each.ended or each.started)
        return found

    # Plans

    async def plans(self) -> dict[str, FailoverTestPlan]:
        """By the replica's name."""

        def load(session: Session) -> dict[str, FailoverTestPlan]:
            rows = session.scalars(select(FailoverTestPlanRow))
            return {row.replica: FailoverTestPlan.model_validate(row.record) for row in rows}

        return await self._catalog.read(load)

    async def plan(self, replica: str, plan: FailoverTestPlan | None) -> None:
        """None: no more tests are made by themselves."""

        def store(session: Session) -> None:
            row = session.get(FailoverTestPlanRow, replica)
            if plan is None:
                if row is not None:
                    session.delete(row)
                return
            if row is None:
                row = FailoverTestPlanRow(replica=replica)
                session.add(row)
            row.record = plan.model_dump(mode="json")

        await self._catalog.write(store)

    async def last_scheduled(self, replica: str) -> datetime | None:
        """When the last test that was made by itself began."""

        def load(session: Session) -> datetime | None:
            mine = FailoverTestRow.replica == replica, FailoverTestRow.record["scheduled"].as_boolean()
            order = FailoverTestRow.started.desc()
            row = session.scalar(select(FailoverTestRow).where(*mine).order_by(order).limit(1))
            return FailoverTest.model_validate(row.record).started if row is not None else None

        return await self._catalog.read(load)

    def _tell(self, session: Session, kind: str, test: FailoverTest) -> None:
        data = {"test": test.id, "vm": test.vm, "point": test.point, "scheduled": test.scheduled}
        self._events.append(session, kind, test.replica, data | ({"error": test.error} if test.error else {}))


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def _forget_old(session: Session, row: FailoverTestRow) -> None:
    ended = select(FailoverTestRow).where(
        FailoverTestRow.replica == row.replica, FailoverTestRow.ended.is_(True)
    )
    for each in list(session.scalars(ended.order_by(FailoverTestRow.started.desc())))[KEPT:]:
        session.delete(each)


def _row(session: Session, test_id: str) -> FailoverTestRow:
    row = session.get(FailoverTestRow, test_id)
    if row is None:
        raise NoFailoverTest(
            f"there is no test {test_id[:36]!r}", value=test_id[:36], cure="See `holdfast replica tests`."
        )
    return row
