"""When cycles may be sent."""

from datetime import datetime, timedelta

import pytest

from holdfast.replication.schedule import BadSchedule, initial_from, parse_schedule

MONDAY = datetime(2024, 1, 1)


def at(day: int, clock: str) -> datetime:
    hour, minute = clock.split(":")
    return MONDAY + timedelta(days=day, hours=int(hour), minutes=int(minute))


@pytest.mark.parametrize(
    ("schedule", "now", "hours"),
    [
        ("always", at(0, "12:00"), 0),
        ("22:00-06:00", at(0, "23:00"), 0),
        ("22:00-06:00", at(1, "05:59"), 0),
        ("22:00-06:00", at(1, "06:00"), 16),
        ("mon-fri 08:00-18:00", at(4, "18:00"), 62),  # until Monday
        ("mon-fri 08:00-18:00,sat 00:00-24:00", at(4, "18:00"), 6),
        ("sun 12:00-13:00", at(6, "13:30"), 6 * 24 + 22.5),
    ],
)
def test_it_says_how_long_nothing_may_be_sent(schedule: str, now: datetime, hours: float) -> None:
    assert parse_schedule(schedule).opens_in(now) == hours * 3600


@pytest.mark.parametrize(
    ("schedule", "hours"),
    [("always", 0), ("22:00-06:00", 16), ("mon-fri 08:00-18:00", 62), ("sun 12:00-13:00", 7 * 24 - 1)],
)
def test_the_longest_gap_is_what_a_point_may_be_older_by(schedule: str, hours: float) -> None:
    assert parse_schedule(schedule).longest_gap() == hours * 3600


@pytest.mark.parametrize(
    "text", ["", "sometimes", "22:00", "25:00-26:00", "22:00-06:00=5Mbit/s", "1:00-2:00,"]
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(BadSchedule):
        parse_schedule(text)


def test_the_initial_copy_begins_at_the_next_such_time() -> None:
    assert initial_from("now", at(0, "12:00")) == at(0, "12:00")
    assert initial_from("at 22:00", at(0, "12:00")) == at(0, "22:00")
    assert initial_from("at 22:00", at(0, "22:30")) == at(1, "22:00")
    for text in ("22:00", "at 24:00", "at noon"):
        with pytest.raises(BadSchedule):
            initial_from(text, MONDAY)
