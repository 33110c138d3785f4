"""Records are durable, migrated, and never half-written; events are followed without a gap."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from holdfast.catalog.events import EventLog
from holdfast.catalog.facts import Facts
from holdfast.catalog.store import Catalog, CatalogDamaged, RecordsNewer
from holdfast.catalog.tables import EventRow, FactRow, Table


def test_the_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    Catalog.open(tmp_path / "c").close()
    with create_engine(f"sqlite:///{tmp_path / 'c'}").connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_the_file_is_private(tmp_path: Path) -> None:
    Catalog.open(tmp_path / "c").close()
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600


def test_records_of_a_newer_version_are_left_alone(tmp_path: Path) -> None:
    Catalog.open(tmp_path / "c").close()
    with sqlite3.connect(tmp_path / "c") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(RecordsNewer):
        Catalog.open(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CatalogDamaged):
        Catalog.open(tmp_path / "c")


async def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "c")

    def half(session: Session) -> None:
        session.add(FactRow(key="a", value={}))
        session.flush()
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        await catalog.write(half)
    assert await Facts(catalog).get("a") is None
    await Facts(catalog).put("a", {"x": 1})
    await Facts(catalog).put("a", {"x": 2})
    assert await Facts(catalog).get("a") == {"x": 2}
    catalog.close()


async def test_followers_see_every_event_once_and_in_order(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "c")
    log = EventLog(catalog)
    for number in range(5):
        await log.emit("test", str(number))
    seen: list[str] = []

    async def follow() -> None:
        async for event in log.follow(after=2):
            seen.append(event.subject)
            if len(seen) == 6:
                return

    task = asyncio.ensure_future(follow())
    for number in range(5, 8):
        await log.emit("test", str(number))
    await asyncio.wait_for(task, 10)
    assert seen == ["2", "3", "4", "5", "6", "7"]
    catalog.close()


async def test_an_event_of_a_failed_transaction_is_never_seen(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "c")
    log = EventLog(catalog)

    def fail(session: Session) -> None:
        log.append(session, "test", "lost")
        session.flush()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await catalog.write(fail)
    await log.emit("test", "kept")
    assert [event.subject for event in await log.recent(10)] == ["kept"]
    catalog.close()


async def test_old_events_are_forgotten_and_the_gap_is_said(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "c")
    log = EventLog(catalog, keep=100)
    await catalog.write(lambda session: [log.append(session, "test", str(n)) for n in range(1000)])
    count = await catalog.read(lambda session: session.scalar(select(func.count(EventRow.id))))
    assert count == 100
    first = await anext(log.follow(after=5))
    assert first.kind == "events.gap"
    catalog.close()


async def test_a_reader_sees_one_state_of_the_records(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "c")
    facts = Facts(catalog)
    await facts.put("a", {"x": 1})
    loop = asyncio.get_running_loop()

    def look_twice(session: Session) -> tuple[object, object]:
        first = session.scalar(select(FactRow.value))
        asyncio.run_coroutine_threadsafe(facts.put("a", {"x": 2}), loop).result(10)
        return first, session.scalar(select(FactRow.value))

    assert await catalog.read(look_twice) == ({"x": 1}, {"x": 1})
    assert await facts.get("a") == {"x": 2}
    catalog.close()
