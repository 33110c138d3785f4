"""Bandwidth for an RPO and back, by cases that can be worked out by hand."""

from datetime import timedelta

import pytest

from holdfast.replication.capacity import CYCLE_SECONDS, expected_rpo, measured, needed_bandwidth
from holdfast.replication.history import Kept
from holdfast.replication.intervals import Interval
from holdfast.replication.pace import BadLimit
from holdfast.replication.planning import Planning, parse_bandwidth
from holdfast.spec.replica import ReplicaStatus

MB = 1_000_000


def minutes(*rates: float) -> list[Kept]:
    """Of so many bytes a second each."""
    return [Kept(60 * at, 60, Interval(changed=int(60 * rate))) for at, rate in enumerate(rates)]


def test_an_even_load_on_a_wide_link_costs_a_cycle() -> None:
    of = measured([minutes(*[1 * MB] * 60)])
    assert (of.average, of.peak) == (1 * MB, 1 * MB)
    expected = expected_rpo(of, 100 * MB, 1.0)
    assert expected is not None
    assert expected.worst == pytest.approx(CYCLE_SECONDS * 1.01 / 0.99)


def test_a_burst_that_exceeds_the_link_waits_and_drains() -> None:
    # For one minute 2 MB/s more than the link takes: 120 MB, which drain at 2 MB/s within the next minute.
    of = measured([minutes(*[1 * MB] * 10, 5 * MB, *[1 * MB] * 89)])
    expected = expected_rpo(of, 3 * MB, 1.0)
    assert expected is not None
    assert expected.worst == pytest.approx(120 / 3, abs=10)
    assert expected.p50 < 1.0
    assert 5 < expected.p99 < expected.worst
    # Half of it on the link: nothing waits.
    packed = expected_rpo(of, 3 * MB, 0.5)
    assert packed is not None and packed.worst < 4.0


def test_the_bandwidth_for_an_rpo_is_the_least_that_holds_it() -> None:
    of = measured([minutes(*[1 * MB] * 50, 8 * MB, *[1 * MB] * 149)])
    for rpo in (1.0, 5.0, 60.0):
        usual, always = needed_bandwidth(of, rpo, 1.0), needed_bandwidth(of, rpo, 1.0, always=True)
        assert usual is not None and always is not None and usual <= always
        at, below = expected_rpo(of, always, 1.0), expected_rpo(of, 0.98 * always, 1.0)
        assert at is not None and below is not None and at.worst <= rpo < below.worst
        exact = expected_rpo(of, usual, 1.0)
        assert exact is not None and exact.p99 <= rpo
    assert needed_bandwidth(of, 1.0, 1.0) < needed_bandwidth(of, 1.0, 1.0, always=True)  # type: ignore[operator]
    assert needed_bandwidth(of, CYCLE_SECONDS / 2, 1.0) is None


def test_vms_that_share_a_link_are_added_where_they_meet() -> None:
    of = measured([minutes(1 * MB, 2 * MB), minutes(3 * MB)])
    assert (of.peak, of.average) == (4 * MB, 3 * MB)


def test_of_nothing_nothing_is_said() -> None:
    of = measured([])
    assert (of.average, of.peak) == (0.0, 0.0)
    assert expected_rpo(of, MB, 1.0) is None
    assert needed_bandwidth(of, 1.0, 1.0) is None


class Sent:
    """Two VMs, one of which compresses to a quarter."""

    async def profiles(
        self, name: str | None, since: timedelta
    ) -> tuple[tuple[ReplicaStatus, list[Kept]], ...]:
        assert since == timedelta(hours=1)
        found = (
            (status("web", counted_changed_bytes=400, counted_sent_bytes=100), minutes(4 * MB, 4 * MB)),
            (status("db", counted_changed_bytes=0, counted_sent_bytes=0), minutes(1 * MB, 1 * MB)),
        )
        return tuple(each for each in found if name in (None, each[0].vm))


def status(vm: str, **more: int) -> ReplicaStatus:
    nothing = {"rpo_seconds": None, "rpo_p50_seconds": None, "rpo_p99_seconds": None, "last_error": ""}
    counts = dict.fromkeys(("lag_bytes", "full_copies", "points", "throughput", "cycles"), 0)
    words = {"vm": vm, "peer": "south", "state": "replicating", "health": "normal", "findings": ()}
    return ReplicaStatus.model_validate({**nothing, **counts, **words, "target_seconds": 2.0, **more})


async def test_plans_are_of_each_vm_and_of_all_together() -> None:
    planning = Planning(Sent())  # type: ignore[arg-type]
    web, db, both = await planning.plan(None, None, "100Mbit/s", timedelta(hours=1))
    assert (web.wire_ratio, db.wire_ratio, both.wire_ratio) == (0.25, 1.0, 0.25)
    assert (both.vm, both.peer, both.churn, both.rpo_seconds) == ("", "south", 5 * MB, 2.0)
    for each in (web, db, both):
        assert each.bandwidth_p99 is not None and each.bandwidth_p99 > each.churn * each.wire_ratio
        assert each.expected_p99_seconds is not None and each.expected_p99_seconds < 1.0
    (alone,) = await planning.plan("db", 60.0, None, timedelta(hours=1))
    assert (alone.rpo_seconds, alone.expected_p99_seconds) == (60.0, None)
    assert alone.bandwidth_p99 is not None and db.bandwidth_p99 is not None
    assert alone.bandwidth_p99 < db.bandwidth_p99


def test_a_bandwidth_is_one_rate() -> None:
    assert parse_bandwidth("8Mbit/s") == MB
    for text in ("none", "fast", "1Gbit/s,22:00-06:00=none"):
        with pytest.raises(BadLimit):
            parse_bandwidth(text)
