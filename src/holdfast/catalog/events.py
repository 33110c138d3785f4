"""The event log: appended in the transaction that it tells of, followed by any number of readers.

Readers take events from the table by id, so none is lost between 'old' and 'live'; the commit
only wakes them.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware, now
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import EventRow
from holdfast.spec.event import Event

_BATCH = 500
_PRUNE_EVERY = 1000
_SUBJECT = 128


def _event(row: EventRow) -> Event:
    return Event(id=row.id, time=aware(row.time), kind=row.kind, subject=row.subject, data=row.data)


class EventLog:
    """Owner of the events. `keep` is how many are kept; older ones are forgotten."""

    def __init__(self, catalog: Catalog, keep: int = 100_000) -> None:
        self._catalog = catalog
        self._keep = keep
        self._loop = asyncio.get_running_loop()
        self._followers: set[asyncio.Event] = set()
        catalog.after_commit.append(self._committed)

    def append(self, session: Session, kind: str, subject: str, data: dict[str, Any] | None = None) -> None:
        """Add an event to somebody's transaction; readers see it once that is committed."""
        row = EventRow(time=now(), kind=kind, subject=subject[:_SUBJECT], data=data or {})
        session.add(row)
        session.info.setdefault("events", []).append(row)

    async def emit(self, kind: str, subject: str, data: dict[str, Any] | None = None) -> None:
        """An event in a transaction of its own."""
        await self._catalog.write(lambda session: self.append(session, kind, subject, data))

    def _committed(self, session: Session) -> None:
        rows: list[EventRow] = session.info.pop("events", [])
        if not rows:
            return
        if any(row.id % _PRUNE_EVERY == 0 for row in rows):
            session.execute(delete(EventRow).where(EventRow.id <= rows[-1].id - self._keep))
            session.commit()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for follower in self._followers:
            follower.set()

    async def last_id(self) -> int:
        """The newest event's id; 0 where there is none."""
        return await self._catalog.read(lambda session: session.scalar(select(func.max(EventRow.id))) or 0)

    async def recent(self, limit: int, subject: str | None = None) -> list[Event]:
        """The newest `limit` events, oldest first."""

        def query(session: Session) -> list[Event]:
            statement = select(EventRow).order_by(EventRow.id.desc()).limit(limit)
            if subject is not None:
                statement = statement.where(EventRow.subject == subject)
            return [_event(row) for row in session.scalars(statement)][::-1]

        return await self._catalog.read(query)

    async def follow(self, after: int | None = None) -> AsyncIterator[Event]:
        """Events after the id `after` (None: only new ones), then every further one as it happens.

        Where events after that id were already forgotten, an event of kind `events.gap` with id 0
        comes first.
        """
        woken = asyncio.Event()
        self._followers.add(woken)
        try:
            last = await self.last_id() if after is None else after
            if after and await self._forgotten(after):
                yield Event(id=0, time=aware(now()), kind="events.gap", subject="events")
            while True:
                woken.clear()
                batch = await self._after(last)
                for event in batch:
                    last = event.id
                    yield event
                if len(batch) < _BATCH:
                    await woken.wait()
        finally:
            self._followers.discard(woken)

    async def _after(self, last: int) -> list[Event]:
        statement = select(EventRow).where(EventRow.id > last).order_by(EventRow.id).limit(_BATCH)
        return await self._catalog.read(lambda session: [_event(row) for row in session.scalars(statement)])

    async def _forgotten(self, after: int) -> bool:
        oldest = await self._catalog.read(lambda session: session.scalar(select(func.min(EventRow.id))) or 0)
        return oldest > after + 1
