"""When replicas are tested by themselves."""

from datetime import UTC, datetime, timedelta

import pytest

from holdfast.replication.failover_test_schedule import BadTestSchedule, parse_schedule

MONDAY = datetime(2030, 1, 7, 12, 0, tzinfo=UTC)


def first_due(text: str, last: datetime) -> datetime:
    schedule, now = parse_schedule(text), last
    while not schedule.due(last, now):
        now += timedelta(minutes=1)
        assert now - last < timedelta(days=9)
    return now


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("every 12h", 12),
        ("every 30m", 0.5),
        ("daily 03:00", 15),
        ("daily 12:00", 24),
        ("Daily  12:30", 0.5),
        ("sun 12:00", 6 * 24),
        ("mon 11:00", 7 * 24 - 1),
        ("tue-thu 12:00", 24),
        ("sat-mon 13:00", 1),
    ],
)
def test_the_next_time_after_a_test(text: str, hours: float) -> None:
    assert first_due(text, MONDAY) == MONDAY + timedelta(hours=hours)


def test_what_was_missed_is_made_up_for_once() -> None:
    schedule, back = parse_schedule("daily 03:00"), MONDAY + timedelta(days=5)
    assert schedule.due(MONDAY, back)
    assert not schedule.due(back, back + timedelta(hours=1))


@pytest.mark.parametrize(
    "text", ["", "daily", "daily 24:00", "daily 3:00", "every 1m", "every day", "foo 03:00", "mon-foo 03:00"]
)
def test_what_says_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadTestSchedule):
        parse_schedule(text)
