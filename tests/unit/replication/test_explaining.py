"""What explanations are made of: every known error, states without one, and replicas that are held."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast.replication.causes import FAULTS, cause_of
from holdfast.replication.explaining import HeldFacts, Moment, explain, explain_held, rate_advice
from holdfast.replication.health import Facts, Health, ReplicationState, Side
from holdfast.replication.progress import Fault, Progress
from holdfast.spec.replica import HeldReplica, ReplicaStatus

NOW = Moment(1000.0, datetime(2030, 1, 1, 12, tzinfo=UTC))
WELL = Facts(ReplicationState.REPLICATING, target=1.0, rpo=0.8)
GUIDE = Path(__file__).parents[3] / "docs/guide/errors.md"


def status(**more: Any) -> ReplicaStatus:
    known = {"rpo_seconds": 0.8, "rpo_p50_seconds": 0.6, "rpo_p99_seconds": 1.1, "target_seconds": 1.0}
    counts = dict.fromkeys(("lag_bytes", "full_copies", "throughput", "cycles"), 0)
    words = {"vm": "web", "peer": "south", "state": "replicating", "health": "normal", "findings": ()}
    return ReplicaStatus.model_validate({**known, **counts, **words, "points": 9, "last_error": "", **more})


def test_every_known_error_is_one_of_ours_and_says_what_to_do() -> None:
    ids = set(re.findall(r"^\| `([a-z0-9-]+)` \|", GUIDE.read_text(), re.MULTILINE)) | {"os-error"}
    assert set(FAULTS) <= ids
    for each in FAULTS:
        found = cause_of(Fault(each, "words", "the error's own cure"))
        assert found.cause and found.cure and found.health > Health.NORMAL


def test_who_said_it_decides_where_to_look() -> None:
    full = "no-space"
    assert cause_of(Fault(full, "", "", refused=True)).side is Side.REPLICA
    assert cause_of(Fault(full, "", "")).side is Side.SOURCE
    assert cause_of(Fault("replica-not-that-peer", "", "", refused=True)) is FAULTS["replica-not-let-in"]
    assert "another" in cause_of(Fault("replica-not-that-peer", "", "")).cause.lower()
    assert cause_of(Fault("never-heard-of", "its words", "its cure", refused=True)).side is Side.REPLICA
    assert cause_of(Fault("never-heard-of", "its words", "its cure")).cause == "its words"


def test_what_is_well_is_said_to_be_so_and_why() -> None:
    found = explain(status(), WELL, Progress(), NOW)
    assert (found.health, found.causes, found.tried) == ("normal", (), "")
    assert "0.8 s old, the target is 1 s" in found.summary


def test_a_fault_takes_the_place_of_findings_that_only_say_that_there_is_one() -> None:
    progress = Progress(clock=lambda: 940.0)
    progress.begins()
    progress.failed(Fault("replica-nobody-listens", "nobody listens", "Start it."))
    facts = Facts(ReplicationState.REPLICATING, 1.0, 61.0, cannot_send="nobody listens", cannot_send_for=60.0)
    found = explain(status(next_cycle_seconds=4.0), facts, progress, NOW)
    assert [each.rule for each in found.causes] == ["replica-nobody-listens"]
    assert found.causes[0].since == NOW.wall - timedelta(seconds=60)
    assert "1 try failed" in found.tried and "4.0 s" in found.tried


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        (Facts(ReplicationState.SUSPENDED, 1.0, 0.8), "source-paused"),
        (Facts(ReplicationState.REPLICATING, 1.0, 0.8, lost_points=2), "points-lost"),
        (Facts(ReplicationState.REPLICATING, 1.0, 0.8, ahead=60.0), "clock-behind"),
    ],
)
def test_states_without_an_error_are_causes_too(facts: Facts, rule: str) -> None:
    found = explain(status(), facts, Progress(), NOW)
    assert [each.rule for each in found.causes] == [rule]
    assert found.summary == found.causes[0].cause


def test_a_comparison_says_why_and_that_points_stay() -> None:
    found = explain(status(), WELL, Progress(comparing=True), NOW)
    assert "not known any more" in found.tried and "Points stay" in found.tried


def test_advice_is_of_the_limit_that_is_too_tight_now() -> None:
    slow = status(
        churn=1e6, throughput=1e5, wire_rate=5e4, limit="none", peer_limit="8Mbit/s,12:00-13:00=50kB/s"
    )
    words = rate_advice(slow, NOW.wall)
    assert "The limit of the peer is 48.8 KiB/s now" in words
    assert "610 KiB/s would hold the RPO of 1 s" in words
    assert "A link that carries" in rate_advice(slow, NOW.wall.replace(hour=14))
    assert "an RPO of 1.1 s holds" in rate_advice(status(churn=1e5, throughput=1e6, wire_rate=5e5), NOW.wall)


def test_of_a_replica_that_is_held_this_host_says_what_it_knows() -> None:
    held = HeldReplica(
        name="web", source="north", connected=True, points=9, newest=NOW.wall, oldest=None, used=5
    )
    well = HeldFacts(age=0.9, paired=True, lost=0, room=None, used=5)
    assert explain_held(held, well).summary == "All is well: the newest of 9 points is 0.9 s old."
    gone = held.model_copy(update={"connected": False})
    cases = {
        "source-not-paired": (held, HeldFacts(0.9, paired=False, lost=0, room=None, used=5)),
        "replica-full": (held, HeldFacts(0.9, paired=True, lost=0, room=5, used=5)),
        "source-refused": (
            held,
            HeldFacts(0.9, paired=True, lost=0, room=None, used=5, refused=(NOW.wall, "no-space", "full")),
        ),
        "points-lost": (held, HeldFacts(0.9, paired=True, lost=2, room=None, used=5)),
        "points-in-the-future": (held, HeldFacts(-60.0, paired=True, lost=0, room=None, used=5)),
        "source-gone": (gone, HeldFacts(500.0, paired=True, lost=0, room=None, used=5)),
    }
    for rule, (replica, facts) in cases.items():
        found = explain_held(replica, facts)
        assert [each.rule for each in found.causes] == [rule]
        assert found.held and found.causes[0].cure
    assert explain_held(gone, well).causes == ()  # it was here a moment ago
