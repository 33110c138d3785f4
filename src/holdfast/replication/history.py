"""What happened in each minute of a day and each hour of 90 days, for every replication of this host.

    a minute ends ▶ one transaction: a row for each replication
    an hour ends  ▶ its minutes joined into one row; rows that are too old, or of nobody, go

Owner of the file: `History`. It is of use for figures alone: one that cannot be read is begun anew, and what
a power failure takes are the last minutes. Times are seconds since 1970, spans seconds.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from holdfast.replication.intervals import Interval, joined

log = structlog.get_logger(__name__)
T = TypeVar("T")

MINUTE, HOUR = 60, 3600
MINUTES_KEPT = 25 * HOUR
"""A day, and the hour that is not joined yet."""
HOURS_KEPT = 90 * 24 * HOUR
_FORM = 1
"""Of the file, in its `user_version`."""
_TABLE = """
CREATE TABLE intervals (
    replication TEXT NOT NULL, span INTEGER NOT NULL, begin INTEGER NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (replication, span, begin)
) WITHOUT ROWID
"""
_UNJOINED = """
SELECT replication, begin - begin % 3600 AS hour FROM intervals WHERE span = 60 AND begin < ?
EXCEPT SELECT replication, begin FROM intervals WHERE span = 3600
"""


@dataclass(frozen=True)
class Kept:
    begin: int
    span: int
    interval: Interval


class History:
    """All calls go through one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="replica-history")
        self._opened: sqlite3.Connection | None = None
        self._joined_until = 0

    async def write(self, minute: int, rows: Mapping[str, Interval], known: Collection[str]) -> None:
        """The minute that began then, by replication; those not `known` are forgotten within the hour."""

        def work(file: sqlite3.Connection) -> None:
            values = [(each, MINUTE, minute, interval.dumped()) for each, interval in rows.items()]
            file.executemany("INSERT OR REPLACE INTO intervals VALUES (?, ?, ?, ?)", values)
            hour = minute - minute % HOUR
            if hour > self._joined_until:
                _join_hours(file, hour)
                _forget(file, minute, known)
                self._joined_until = hour

        await self._do(work)

    async def read(self, replication: str, since: float, until: float) -> tuple[Kept, ...]:
        """What began in that time, ascending: minutes where all of them are kept yet, else hours.

        The hour that has not ended is joined of its minutes.
        """

        def work(file: sqlite3.Connection) -> tuple[Kept, ...]:
            if until - since <= MINUTES_KEPT - HOUR:
                return _rows(file, replication, MINUTE, since, until)
            hours = _rows(file, replication, HOUR, since, until)
            done = hours[-1].begin + HOUR if hours else since
            minutes = _rows(file, replication, MINUTE, done, until)
            return (*hours, *_by_hour(minutes))

        return await self._do(work)

    async def reset(self, replication: str) -> None:
        await self._do(
            lambda file: file.execute("DELETE FROM intervals WHERE replication = ?", (replication,))
        )

    async def close(self) -> None:
        def work() -> None:
            if self._opened is not None:
                self._opened.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, work)
        self._thread.shutdown()

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_one, work)

    def _in_one(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Raises sqlite3.Error."""
        try:
            return self._transaction(work)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # a full disk, for one: the file is whole
                raise
            log.warning("the history of replications is begun anew", error=str(error))
            self._remove()
            return self._transaction(work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        file = self._file()
        with file:  # commits, or rolls back
            file.execute("BEGIN")
            return work(file)

    def _file(self) -> sqlite3.Connection:
        if self._opened is None:
            self._path.touch(mode=0o600, exist_ok=True)
            opened = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._opened = opened
            opened.execute("PRAGMA journal_mode=WAL")
            opened.execute("PRAGMA synchronous=NORMAL")
            (form,) = opened.execute("PRAGMA user_version").fetchone()
            if form not in (0, _FORM):
                raise sqlite3.DatabaseError(f"its form is {form}, not {_FORM}")
            if not form:
                opened.execute("BEGIN")
                opened.execute("DROP TABLE IF EXISTS intervals")
                opened.execute(_TABLE)
                opened.execute(f"PRAGMA user_version={_FORM}")
                opened.execute("COMMIT")
        return self._opened

    def _remove(self) -> None:
        if self._opened is not None:
            with contextlib.suppress(sqlite3.Error):
                self._opened.close()
        self._opened, self._joined_until = None, 0
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


def _rows(
    file: sqlite3.Connection, replication: str, span: int, since: float, until: float
) -> tuple[Kept, ...]:
    asked = (
        "SELECT begin, record FROM intervals WHERE replication = ? AND span = ? AND begin >= ? AND begin < ? "
        "ORDER BY begin"
    )
    found = []
    for begin, record in file.execute(asked, (replication, span, since, until)):
        with contextlib.suppress(ValueError, TypeError):  # of an earlier version
            found.append(Kept(begin, span, Interval.loaded(record)))
    return tuple(found)


def _by_hour(minutes: Iterable[Kept]) -> Iterable[Kept]:
    hours: dict[int, list[Interval]] = {}
    for each in minutes:
        hours.setdefault(each.begin - each.begin % HOUR, []).append(each.interval)
    return (Kept(begin, HOUR, joined(found)) for begin, found in sorted(hours.items()))


def _join_hours(file: sqlite3.Connection, hour: int) -> None:
    """All that ended before the hour that began then."""
    for replication, begin in file.execute(_UNJOINED, (hour,)).fetchall():
        minutes = _rows(file, replication, MINUTE, begin, begin + HOUR)
        record = joined(each.interval for each in minutes).dumped()
        file.execute("INSERT INTO intervals VALUES (?, ?, ?, ?)", (replication, HOUR, begin, record))


def _forget(file: sqlite3.Connection, at: int, known: Collection[str]) -> None:
    for span, kept in ((MINUTE, MINUTES_KEPT), (HOUR, HOURS_KEPT)):
        file.execute("DELETE FROM intervals WHERE span = ? AND begin < ?", (span, at - kept))
    present = {each for (each,) in file.execute("SELECT DISTINCT replication FROM intervals")}
    file.executemany(
        "DELETE FROM intervals WHERE replication = ?", [(each,) for each in present - set(known)]
    )
