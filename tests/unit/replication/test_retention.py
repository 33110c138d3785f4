"""Retention plans: what is written, and which points stay."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.replication.retention import DEFAULT, BadRetention, RetentionPlan, kept, most_points, parse_plan

START = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass(frozen=True)
class P:
    number: int
    taken: datetime


def points(seconds: list[int]) -> list[P]:
    return [P(number, START + timedelta(seconds=at)) for number, at in enumerate(sorted(seconds), 1)]


times = st.lists(st.integers(0, 40 * 86400), max_size=120, unique=True).map(points)
plans = st.sampled_from([DEFAULT, "", "all:1h", "1h:1d", "30s:5m,1h:1w", "all:1d,1d:30d"]).map(parse_plan)


@pytest.mark.parametrize("text", [DEFAULT, "all:90s", "1h:1d,1d:30d", "15s:1m", "2d:14d"])
def test_a_plan_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_plan(text)) == text
    assert parse_plan(str(parse_plan(text))) == parse_plan(text)


@pytest.mark.parametrize(
    "text",
    [
        *("all", "1m", "1x:1h", "1m:1h,all:1d", "1m:1h,1h:10m", "1h:1m", "0s:1m", "all:0m", "1m:9999999w"),
        *(",".join(["all:1m"] * 17), "all:1m,", "-1m:1h", "1m:1h;1h:1d", "\u0661m:1h"),
    ],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(BadRetention) as refused:
        parse_plan(text)
    assert refused.value.id == "bad-retention" and refused.value.cure


def test_seconds_thin_as_the_plan_says() -> None:
    """A point a second for two hours, pruned each minute."""
    plan, held = parse_plan("all:10m,1m:1h"), list[P]()
    for second in range(7200):
        held.append(P(second + 1, START + timedelta(seconds=second)))
        if second % 60 == 59:
            chosen = kept(held, plan)
            held = [each for each in held if each.number in chosen]
    ages = [(held[-1].taken - each.taken).total_seconds() for each in held]
    assert sum(age <= 600 for age in ages) == 601
    assert [age for age in ages if age > 600] == [599 + 60 * minute for minute in range(50, 0, -1)]
    assert len(held) <= most_points(plan, timedelta(seconds=1))


@given(times, plans)
def test_the_newest_is_kept_and_nothing_is_invented(all_points: list[P], plan: RetentionPlan) -> None:
    chosen = kept(all_points, plan)
    assert chosen <= {each.number for each in all_points}
    assert not all_points or all_points[-1].number in chosen


@given(times, plans)
def test_every_rule_finds_a_point_in_each_of_its_intervals(all_points: list[P], plan: RetentionPlan) -> None:
    chosen = kept(all_points, plan)
    for rule in plan.rules:
        if not rule.every:
            continue
        young = [each for each in all_points if all_points[-1].taken - each.taken <= rule.age]
        wanted = {(each.taken - START) // rule.every for each in young}
        assert wanted == {(each.taken - START) // rule.every for each in young if each.number in chosen}


@settings(max_examples=60)
@given(times, plans, st.sets(st.integers(1, 120)))
def test_pruning_often_keeps_what_pruning_once_keeps(
    all_points: list[P], plan: RetentionPlan, prunings: set[int]
) -> None:
    """But for the edge of a rule's age: what was the first of its interval may have become too old."""
    held: list[P] = []
    for each in all_points:
        held.append(each)
        if each.number in prunings:
            chosen = kept(held, plan)
            held = [one for one in held if one.number in chosen]
    final = kept(held, plan)
    for rule in plan.rules:
        if not rule.every:
            young = [each for each in all_points if all_points[-1].taken - each.taken <= rule.age]
            assert {each.number for each in young} <= final
