"""Minutes written down while a replication runs, and what is known of it after a restart."""

import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast.replication import recording
from holdfast.replication.figures import CycleDone, ReplicationFigures
from holdfast.replication.history import History
from holdfast.replication.recording import BadHistoryTime, Measured, Recording, told

WALL = 1_800_000_030.0


class Clocks:
    """Wall clock and monotonic clock, which agree."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr(recording.time, "monotonic", lambda: self.now)
        patch.setattr(recording.time, "time", lambda: WALL + self.now)


class Source:
    def __init__(self, clocks: Clocks, path: Path) -> None:
        self.clocks = clocks
        self.figures = ReplicationFigures(1.0, clocks.now)
        self.history = History(path)
        self.recording = Recording(self.history, lambda: [Measured("a", self.figures)])

    async def replicate(self, minutes: int, took: float) -> None:
        for _ in range(minutes):
            for _ in range(60):
                self.clocks.now += 1.0
                taken = self.clocks.now - took
                self.figures.done(CycleDone(taken, self.clocks.now, 1000))
            await self.recording.write()


@pytest.fixture
async def clocks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Clocks]:
    yield Clocks(monkeypatch)


async def test_figures_go_on_where_an_earlier_daemon_ended(clocks: Clocks, tmp_path: Path) -> None:
    first = Source(clocks, tmp_path / "history")
    await first.replicate(30, took=0.2)
    before = first.figures.now(clocks.now)
    await first.history.close()
    clocks.now += 300  # nobody measured
    second = Source(clocks, tmp_path / "history")
    await second.recording.recall("a", second.figures)
    await second.replicate(10, took=0.2)
    now = second.figures.now(clocks.now)
    assert now.cycles == 2400
    assert now.rpo_p99_seconds == pytest.approx(before.rpo_p99_seconds, rel=0.1)
    kept = await second.recording.read("a", timedelta(hours=1))
    assert [each.interval.cycles for each in kept[:-1]] == [60] * 40
    assert kept[-1].interval.cycles == 0  # of now
    shown = told("web", "south", kept, last_sync=None, last_test=None)
    assert (shown.total.cycles, shown.total.changed_bytes) == (2400, 2_400_000)
    gap = shown.intervals[30].begin - shown.intervals[29].begin
    assert gap == timedelta(minutes=6)
    await second.history.close()


async def test_what_did_not_end_yet_is_part_of_what_is_told(clocks: Clocks, tmp_path: Path) -> None:
    source = Source(clocks, tmp_path / "history")
    await source.replicate(2, took=0.2)
    clocks.now += 1
    source.figures.done(CycleDone(clocks.now - 1, clocks.now, 5))
    for since in (timedelta(hours=1), timedelta(days=7)):
        kept = await source.recording.read("a", since)
        assert sum(each.interval.cycles for each in kept) == 121
    for wrong in (timedelta(seconds=1), timedelta(days=91)):
        with pytest.raises(BadHistoryTime):
            await source.recording.read("a", wrong)
    await source.history.close()


async def test_after_a_reset_nothing_of_before_is_told(clocks: Clocks, tmp_path: Path) -> None:
    source = Source(clocks, tmp_path / "history")
    await source.replicate(2, took=0.2)
    await source.recording.reset("a")
    source.figures = ReplicationFigures(1.0, clocks.now)
    await source.replicate(1, took=0.2)
    kept = await source.recording.read("a", timedelta(hours=1))
    assert sum(each.interval.cycles for each in kept) == 60
    assert time.monotonic() == clocks.now
    await source.history.close()
