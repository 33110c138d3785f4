"""Each minute of every replication written down, and asked for again: history, and figures after a restart.

Wall-clock minutes name the rows; what lies between two of them is measured by the monotonic clock, so a clock
that is set makes a row short or long in name only.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from holdfast.replication.figures import WINDOW, ReplicationFigures, percentile
from holdfast.replication.history import MINUTE, History, Kept
from holdfast.replication.intervals import Interval, joined
from holdfast.spec.errors import InvalidInput
from holdfast.spec.replica_figures import ReplicaHistory, ReplicaInterval

log = structlog.get_logger(__name__)

LONGEST = timedelta(days=90)


class BadHistoryTime(InvalidInput):
    id = "replica-bad-history-time"


@dataclass(frozen=True)
class Measured:
    """A replication that is under way."""

    id: str
    figures: ReplicationFigures


class Recording:
    """Owner of the history; `look` gives all replications of now."""

    def __init__(self, history: History, look: Callable[[], Iterable[Measured]]) -> None:
        self._history = history
        self._look = look
        self._until: dict[str, tuple[ReplicationFigures, float]] = {}
        """Up to when each was written, by the monotonic clock."""

    async def keep(self) -> None:
        """Write each minute as it ends; for ever."""
        while True:
            await asyncio.sleep(MINUTE - time.time() % MINUTE)
            try:
                await self.write()
            except (sqlite3.Error, OSError) as error:
                log.warning("a minute of replication was not written down", error=str(error))

    async def write(self) -> None:
        """What happened since it was called last. Raises sqlite3.Error, OSError."""
        rows, now = {}, time.monotonic()
        minute = int(time.time() - MINUTE / 2) // MINUTE * MINUTE  # it may be called a moment too early
        found = list(self._look())
        for each in found:
            figures, until = self._until.get(each.id, (None, 0.0))
            if figures is not each.figures:  # it began, or was begun anew, meanwhile
                until = each.figures.started
            interval = each.figures.interval(until, now)
            self._until[each.id] = each.figures, now
            if interval.seconds or interval.errors:
                rows[each.id] = interval
        self._until = {each.id: self._until[each.id] for each in found}
        await self._history.write(minute, rows, [each.id for each in found])

    async def recall(self, replication: str, figures: ReplicationFigures) -> None:
        """Tell figures that begin now what is kept of the time before."""
        now, wall = time.monotonic(), time.time()
        try:
            kept = await self._history.read(replication, wall - WINDOW, wall)
        except (sqlite3.Error, OSError) as error:
            log.warning("the history of a replication cannot be read", error=str(error))
            return
        figures.recall((now - (wall - each.begin), each.interval) for each in kept)

    async def read(self, replication: str, since: timedelta) -> tuple[Kept, ...]:
        """What is kept, ascending, and what happened since the last minute ended.

        Raises BadHistoryTime.
        """
        if not timedelta(minutes=1) <= since <= LONGEST:
            raise BadHistoryTime(
                f"nothing is kept for {since.total_seconds():.0f} s",
                value=since.total_seconds(),
                cure=f"Ask for one minute to {LONGEST.days} days.",
            )
        wall = time.time()
        kept = await self._history.read(replication, wall - since.total_seconds(), wall)
        live = self._live(replication)
        if live is None:
            return kept
        if kept and kept[-1].begin + kept[-1].span > wall:  # the hour under way
            last = kept[-1]
            whole = joined((last.interval, live))
            return (*kept[:-1], Kept(last.begin, last.span, whole))
        span = kept[-1].span if kept else MINUTE
        return (*kept, Kept(int(wall) // span * span, span, live))

    async def reset(self, replication: str) -> None:
        """Forget what is kept."""
        await self._history.reset(replication)

    async def close(self) -> None:
        await self._history.close()

    def _live(self, replication: str) -> Interval | None:
        for each in self._look():
            if each.id == replication:
                figures, until = self._until.get(each.id, (None, 0.0))
                since = until if figures is each.figures else each.figures.started
                return each.figures.interval(since, time.monotonic())
        return None


def told(
    vm: str, peer: str, kept: tuple[Kept, ...], *, last_sync: datetime | None, last_test: datetime | None
) -> ReplicaHistory:
    """History in the words of the API."""
    begin = kept[0].begin if kept else int(time.time())
    total = joined(each.interval for each in kept)
    length = kept[-1].begin + kept[-1].span - begin if kept else 0
    return ReplicaHistory(
        vm=vm,
        peer=peer,
        total=_interval(begin, length, total),
        last_sync=last_sync,
        last_test=last_test,
        intervals=tuple(_interval(each.begin, each.span, each.interval) for each in kept),
    )


def _interval(begin: int, seconds: int, interval: Interval) -> ReplicaInterval:
    segments = interval.segments()
    median, high = percentile(segments, 0.50), percentile(segments, 0.99)
    return ReplicaInterval(
        begin=datetime.fromtimestamp(begin, UTC),
        seconds=seconds,
        cycles=interval.cycles,
        missed=interval.missed,
        errors=interval.errors,
        average_bytes=round(interval.average_bytes, 1),
        largest_bytes=interval.largest,
        average_latency=round(interval.average_latency, 4),
        changed_bytes=interval.changed,
        pending_bytes=interval.pending,
        rpo_p50_seconds=None if median is None else round(median, 3),
        rpo_p99_seconds=None if high is None else round(high, 3),
    )
