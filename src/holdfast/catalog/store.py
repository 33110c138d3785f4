"""The catalog: one SQLite file, one writer, migrations at opening.

Writes go through one thread, one transaction each, to stable storage before they return
(WAL with synchronous=FULL, sqlite.org/pragma.html#pragma_synchronous); reads run beside them.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from holdfast.host.reserve import SpaceReserve
from holdfast.spec.errors import Failed, Insufficient, Unsupported

T = TypeVar("T")

_READERS = 2


class RecordsNewer(Unsupported):
    id = "records-newer"


class CatalogDamaged(Failed):
    id = "catalog-damaged"


class CatalogFull(Insufficient):
    id = "no-space-for-records"


def _configure(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin`, not by sqlite3's own rules
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    """sqlite3 begins none for reads: two looks of one reader would see two states of the records."""
    connection.exec_driver_sql("BEGIN")


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config


def _upgrade(engine: Engine, path: Path) -> None:
    config = _migrations()
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
        connection.rollback()
        if found == scripts.get_current_head():
            return
        if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
            raise RecordsNewer(
                f"the records in {path} were written by a newer Holdfast (record version {found})",
                value=found,
                cure="Use that newer version again; this one changed nothing.",
            )
        if found is not None:
            _keep_copy(path, found)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def _keep_copy(path: Path, revision: str) -> None:
    """Before a migration: a whole copy of the records as they were, beside them."""
    with sqlite3.connect(path) as source, sqlite3.connect(f"{path}.{revision}.backup") as target:
        source.backup(target)


class Catalog:
    """Owner of the records' file. Rooms bring functions of a Session; nothing leaves a transaction open."""

    def __init__(self, engine: Engine, reserve: SpaceReserve | None = None) -> None:
        self._engine = engine
        self._reserve = reserve
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="catalog-writer")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="catalog-reader")
        self.after_commit: list[Callable[[Session], None]] = []
        """Called in the writer's thread with the session of each committed transaction."""

    @classmethod
    def open(cls, path: Path, reserve: SpaceReserve | None = None) -> "Catalog":
        """Open or make the records at `path`, brought to this version's form.

        `reserve` is given up when a write finds the disk full.

        Raises:
            RecordsNewer: a newer version wrote them.
            CatalogDamaged: the file is not a database or is inconsistent.
            CatalogFull: no space is left.
        """
        path.touch(mode=0o600, exist_ok=True)
        engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False})
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        try:
            with engine.connect() as connection:
                verdict = connection.exec_driver_sql("PRAGMA quick_check").scalar()
            if verdict != "ok":
                raise CatalogDamaged(
                    f"the records in {path} are damaged: {verdict}",
                    value=str(path),
                    cure="Move the file away and restore the newest copy that lies beside it.",
                )
            _upgrade(engine, path)
        except DatabaseError as error:
            engine.dispose()
            raise _plain(error, path) from error
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, reserve)

    async def read(self, fn: Callable[[Session], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, fn)

    async def write(self, fn: Callable[[Session], T]) -> T:
        """Run `fn` in a transaction of its own; committed and durable when this returns.

        The transaction is carried through even where the awaiting task is cancelled.
        `fn` runs a second time where the first found the disk full and the reserve made room.

        Raises:
            CatalogFull: no space is left; nothing was changed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._write, fn)

    def _read(self, fn: Callable[[Session], T]) -> T:
        with Session(self._engine, expire_on_commit=False) as session:
            return fn(session)

    def _write(self, fn: Callable[[Session], T]) -> T:
        try:
            return self._transaction(fn)
        except CatalogFull:
            if self._reserve is None or not self._reserve.give_up():
                raise
            return self._transaction(fn)

    def _transaction(self, fn: Callable[[Session], T]) -> T:
        with Session(self._engine, expire_on_commit=False) as session:
            try:
                result = fn(session)
                session.commit()
            except OperationalError as error:
                raise _plain(error, None) from error
            for hook in self.after_commit:
                hook(session)
            return result

    def close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()


def _plain(error: DatabaseError, path: Path | None) -> Exception:
    text = str(error.orig)
    if "full" in text:
        return CatalogFull(
            "no space is left for the records; nothing was changed",
            cure="Free space on the file system of the state folder.",
        )
    return CatalogDamaged(
        f"the records{f' in {path}' if path else ''} cannot be used: {text}",
        value=str(path) if path else None,
        cure="Check the file system; restore the newest copy that lies beside the file.",
    )
