"""What is kept of a stretch of time, joined with others, against what was measured."""

import itertools
import random

import numpy as np
import pytest

from holdfast.replication.figures import CycleDone, ReplicationFigures, percentile
from holdfast.replication.intervals import EDGES, Interval, joined, spread_of


def busy(seed: int, cycles: int, target: float = 1.0) -> tuple[ReplicationFigures, list[CycleDone]]:
    chance = random.Random(seed)
    at, done = 0.0, []
    figures = ReplicationFigures(target, 0.0)
    for _ in range(cycles):
        taken = at + chance.random()
        at = taken + chance.expovariate(2.0)
        done.append(CycleDone(taken, at, chance.randrange(1 << 20)))
        figures.done(done[-1])
    return figures, done


def test_joined_intervals_are_what_happened_in_all() -> None:
    figures, done = busy(1, 400)
    end = done[-1].acknowledged
    edges = [*np.arange(0.0, end, 60.0), end]
    parts = []
    again = ReplicationFigures(1.0, 0.0)
    waiting = iter(done)
    upcoming = next(waiting)
    for begin, at in itertools.pairwise(edges):
        while upcoming is not None and upcoming.acknowledged <= at:
            again.done(upcoming)
            upcoming = next(waiting, None)  # type: ignore[assignment]
        parts.append(again.interval(begin, at))
    whole = joined(parts)
    assert (whole.cycles, whole.changed) == (400, sum(each.changed for each in done))
    assert whole.largest == max(each.changed for each in done)
    assert whole.latency == pytest.approx(sum(each.acknowledged - each.taken for each in done))
    assert whole.seconds == pytest.approx(end - done[0].acknowledged, rel=1e-6)
    ages = [after.acknowledged - before.taken for before, after in itertools.pairwise(done)]
    assert whole.missed == sum(age > 1.0 for age in ages)
    now = figures.now(end)
    for part, exact in ((0.5, now.rpo_p50_seconds), (0.99, now.rpo_p99_seconds)):
        assert percentile(whole.segments(), part) == pytest.approx(exact, rel=0.08)


def test_percentiles_outlive_the_one_who_measured() -> None:
    figures, done = busy(2, 600)
    end = done[-1].acknowledged
    kept = Interval.loaded(figures.interval(0.0, end).dumped())
    before = figures.now(end)
    anew = ReplicationFigures(1.0, end)
    anew.recall([(0.0, kept)])
    after = anew.now(end)
    assert after.rpo_p99_seconds == pytest.approx(before.rpo_p99_seconds, rel=0.08)
    assert after.rpo_p50_seconds == pytest.approx(before.rpo_p50_seconds, rel=0.08)
    assert (after.cycles, after.largest_bytes) == (before.cycles, before.largest_bytes)
    assert after.average_latency == pytest.approx(before.average_latency, rel=1e-3)
    # A long outage of later weighs more than what was kept.
    anew.done(CycleDone(end, end, 0))
    assert (anew.now(end + 5000).rpo_p50_seconds or 0) > 1000
    # And it is forgotten with the window.
    assert anew.now(end + 13 * 3600).cycles == 0


def test_what_is_kept_is_read_again_as_it_was() -> None:
    figures, done = busy(3, 50)
    figures.failed(done[-1].acknowledged)
    figures.waiting(done[-1].acknowledged, 12345)
    interval = figures.interval(0.0, done[-1].acknowledged)
    assert (interval.errors, interval.pending) == (1, 12345)
    read = Interval.loaded(interval.dumped())
    assert read.dumped() == interval.dumped()
    assert len(interval.dumped()) < 800
    for wrong in ("{}", "[1,2]", "nonsense"):
        with pytest.raises(ValueError):
            Interval.loaded(wrong)


def test_a_spread_counts_every_second_once_however_long() -> None:
    segments = np.array([[0.0, 0.04], [0.2, 1.2], [50.0, 400.0], [8e6, 9e6]])
    spread = spread_of(segments)
    assert sum(spread.values()) == pytest.approx(0.04 + 1.0 + 350.0 + 1e6)
    assert max(spread) == len(EDGES) - 1
    assert np.isfinite(Interval(spread=spread).segments()).all()
    assert spread_of(np.empty((0, 2))) == {}
    assert percentile(Interval().segments(), 0.5) is None
