"""Figures against cases that can be worked out by hand, and against a plain simulation."""

import random
import time

import numpy as np
import pytest

from holdfast.replication.figures import (
    WINDOW,
    CycleDone,
    ReplicationFigures,
    catch_up,
    part_above,
    percentile,
)


def test_nothing_is_told_before_anything_happened() -> None:
    now = ReplicationFigures(1.0, 0.0).now(5.0)
    assert (now.rpo_seconds, now.rpo_p50_seconds, now.rpo_p99_seconds) == (None, None, None)
    assert (now.lag_bytes, now.cycles, now.errors, now.catch_up_seconds) == (0, 0, 0, 0.0)


def steady(every: float, took: float, count: int) -> ReplicationFigures:
    figures = ReplicationFigures(1.0, took)
    for number in range(count):
        figures.done(CycleDone(number * every, number * every + took, 1000))
    return figures


def test_the_rpo_of_even_cycles_is_worked_out() -> None:
    """The RPO runs from 0.2 s to 1.2 s and back, again and again."""
    figures = steady(1.0, 0.2, 101)
    now = figures.now(100.2)
    assert now.rpo_seconds == pytest.approx(0.2)
    assert now.rpo_p50_seconds == pytest.approx(0.7, abs=0.01)
    assert now.rpo_p99_seconds == pytest.approx(1.19, abs=0.01)
    assert now.missed_ratio == pytest.approx(0.2, abs=0.01)
    assert (now.average_bytes, now.largest_bytes) == (1000, 1000)
    assert now.average_latency == pytest.approx(0.2)
    assert now.throughput == pytest.approx(1000, rel=0.05)


def test_an_outage_shows_while_it_lasts_and_is_forgotten_after_the_window() -> None:
    figures = steady(1.0, 0.2, 101)
    assert figures.now(400.0).rpo_seconds == pytest.approx(300.0)
    assert figures.now(400.0).rpo_p50_seconds == pytest.approx(100, abs=5)
    later = ReplicationFigures(1.0, 0.2, window=50.0)
    for number in [*range(10), *range(100, 201)]:
        later.done(CycleDone(float(number), number + 0.2, 10))
    now = later.now(200.2)
    assert now.rpo_p99_seconds == pytest.approx(1.19, abs=0.02)
    assert now.cycles == 50


def test_percentiles_agree_with_sampling() -> None:
    chance = random.Random(1)
    for _ in range(20):
        at, cycles = 0.0, []
        for _ in range(50):
            taken = at + chance.random()
            at = taken + chance.expovariate(1.0)
            cycles.append(CycleDone(taken, at, 1))
        started = cycles[0].acknowledged
        figures = ReplicationFigures(1.0, started)
        for each in cycles:
            figures.done(each)
        samples, steps = [], 20000
        for step in range(steps):
            when = started + (at - started) * (step + 0.5) / steps
            newest = max(each.taken for each in cycles if each.acknowledged <= when)
            samples.append(when - newest)
        samples.sort()
        now = figures.now(at)
        assert now.rpo_p50_seconds == pytest.approx(samples[steps // 2], abs=0.02)
        assert now.rpo_p99_seconds == pytest.approx(samples[steps * 99 // 100], abs=0.05)


def test_lag_churn_and_catching_up() -> None:
    figures = ReplicationFigures(1.0, 0.0)
    for second in range(1, 61):  # the guest changes 3 MB a second, of which 2 MB arrive
        figures.done(CycleDone(second - 0.5, float(second), 2_000_000))
        figures.waiting(float(second), second * 1_000_000)
    now = figures.now(60.0)
    assert now.lag_bytes == 60_000_000
    assert now.throughput == pytest.approx(2e6) and now.churn == pytest.approx(3e6)
    assert now.catch_up_seconds is None
    for second in range(61, 121):  # then it rests, and 0.5 MB a second are left
        figures.done(CycleDone(second - 0.5, float(second), 1_000_000))
        figures.waiting(float(second), max(0, 60 - (second - 60)) * 500_000 + 30_000_000)
    now = figures.now(120.0)
    assert now.throughput == pytest.approx(1e6)
    assert now.churn == pytest.approx(0.5e6)
    assert now.catch_up_seconds == pytest.approx(60.0)


def test_errors_are_counted_within_the_window() -> None:
    figures = ReplicationFigures(1.0, 0.0, window=100.0)
    for at in (10.0, 50.0, 120.0):
        figures.failed(at)
    assert figures.now(130.0).errors == 2


def test_rates_without_time_and_room() -> None:
    assert catch_up(0, 0, 5) == 0.0
    assert catch_up(10, 5, 5) is None
    assert catch_up(10, 7, 5) == 5.0
    assert percentile(np.empty((0, 2)), 0.5) is None and part_above(np.empty((0, 2)), 1) == 0.0


def test_half_a_day_of_seconds_is_told_at_once() -> None:
    figures = steady(1.0, 0.2, 50_000)
    begun = time.process_time()
    now = figures.now(50_000.0)
    assert time.process_time() - begun < 0.5
    assert now.cycles == pytest.approx(43_200, abs=60)  # what is far back goes by minutes
    assert now.rpo_p99_seconds == pytest.approx(1.19, rel=0.04)
    assert now.rpo_p50_seconds == pytest.approx(0.7, rel=0.04)
    assert len(figures._done.rows) < 1000


def test_an_outage_far_back_counts_as_long_as_it_lasted() -> None:
    """Whether it is known by cycles, by minutes, or both."""
    figures = steady(1.0, 0.2, 1000)
    for number in range(3000, 8000):
        figures.done(CycleDone(float(number), number + 0.2, 1000))
    now = figures.now(8000.0)
    assert now.cycles == 6000
    # Of 8000 s it was above 1 s for 2001 s at a stretch, and a fifth of each other second.
    assert now.missed_ratio == pytest.approx((2001 + 0.2 * 5999) / 8000, abs=0.01)
    assert now.rpo_p99_seconds == pytest.approx(1920, rel=0.04)
    assert figures.now(8000.0 + WINDOW + 60).cycles == 0
