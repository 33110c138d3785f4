"""Every rule of health holds in its case, and only there."""

from dataclasses import replace

import pytest

from holdfast.replication.health import RULES, Facts, Health, ReplicationState, findings, health

WELL = Facts(ReplicationState.REPLICATING, target=1.0, rpo=0.8)

CASES = {
    "both-run": replace(WELL, fenced=True, both_run=True),
    "failed-over": replace(WELL, fenced=True),
    "cannot-send": replace(WELL, cannot_send="connection refused {}", cannot_send_for=60),
    "retrying": replace(WELL, cannot_send="connection reset", cannot_send_for=5),
    "resync-required": replace(WELL, state=ReplicationState.WAITING_FOR_RESYNC),
    "replica-paused": replace(WELL, replica_paused=True),
    "replication-error": replace(WELL, state=ReplicationState.ERROR),
    "replica-full": replace(WELL, replica_room_left=0),
    "points-lost": replace(WELL, lost_points=3),
    "replica-filling": replace(WELL, replica_room_left=10, bytes_a_day=11),
    "targets-missed": replace(WELL, missed=0.21),
    "falling-behind": replace(WELL, catches_up=False),
    "late": replace(WELL, rpo=3601),
    "initial-incomplete": replace(
        WELL, state=ReplicationState.INITIAL_IN_PROGRESS, rpo=None, since_enabled=9e4
    ),
    "no-reverse": replace(WELL, state=ReplicationState.FAILED_OVER, reverse_enabled=False),
    "not-consistent": replace(WELL, not_consistent="the agent does not answer"),
    "source-paused": replace(WELL, state=ReplicationState.SUSPENDED),
    "clock-behind": replace(WELL, ahead=6.0),
    "machine-failed": replace(WELL, rests_unsent=True, machine_failed=True),
    "failover-undecided": replace(WELL, undecided=True),
    "nothing-to-send-on": replace(WELL, silent=61.0),
    "unsent": replace(WELL, rests_unsent=True),
}


def test_every_rule_has_a_case() -> None:
    assert [each.id for each in RULES] == list(CASES)


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_holds_in_its_case_alone(rule: str) -> None:
    (found,) = findings(CASES[rule])
    assert found.rule == rule and found.cause and found.cure
    assert "{" not in found.cause.replace("{}", "")
    assert health([found]) is found.health is not Health.NORMAL


def test_what_goes_well_is_normal() -> None:
    assert findings(WELL) == ()
    assert health(()) is Health.NORMAL
    assert findings(replace(WELL, state=ReplicationState.RESYNCHRONISING)) == ()
    assert findings(replace(WELL, rpo=7000.0, target=3600.0)) == ()  # an RPO of hours is no warning


def test_what_is_not_replicated_has_no_findings() -> None:
    assert findings(replace(CASES["cannot-send"], state=ReplicationState.NOT_ENABLED)) == ()


def test_the_worst_comes_first_and_decides() -> None:
    found = findings(replace(CASES["cannot-send"], lost_points=1, missed=0.5))
    assert [each.rule for each in found] == ["cannot-send", "points-lost", "targets-missed"]
    assert health(found) is Health.CRITICAL


def test_what_stands_in_the_way_says_what_to_do() -> None:
    (found,) = findings(replace(WELL, cannot_send="no {}", cannot_send_for=60, cannot_send_cure="say {yes}"))
    assert (found.cause[-5:], found.cure) == ("no {}", "say {yes}")
