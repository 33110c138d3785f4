"""When replicas are tested by themselves: `every 12h`, `daily 03:00`, `mon-fri 03:00`, `sun 03:00`. Pure.

Times of day are local. A time at which this host was down is made up for once, when it is back.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast.spec.errors import InvalidInput

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EVERY = re.compile(r"every (\d{1,4})([mhd])", re.ASCII)
_TIME = re.compile(r"(daily|[a-z]{3}(?:-[a-z]{3})?) (\d{2}):(\d{2})", re.ASCII)
_UNITS = {"m": 60, "h": 3600, "d": 86400}
_LEAST = timedelta(minutes=5)


class BadTestSchedule(InvalidInput):
    id = "bad-test-schedule"


@dataclass(frozen=True)
class FailoverTestSchedule:
    """Either `every`, or a time of some days."""

    every: timedelta | None = None
    days: frozenset[int] = frozenset()
    """Monday is 0."""
    minute: int = 0
    """After midnight."""

    def due(self, last: datetime, now: datetime) -> bool:
        """Whether one should have begun after `last`; both have a zone, that of `now` is the local one."""
        if self.every is not None:
            return now - last >= self.every
        for back in range(8):
            day = now - timedelta(days=back)
            at = day.replace(hour=self.minute // 60, minute=self.minute % 60, second=0, microsecond=0)
            if at <= now and at.weekday() in self.days:
                return last < at
        return False


def parse_schedule(text: str) -> FailoverTestSchedule:
    """Raises BadTestSchedule."""
    written = " ".join(text.lower().split())
    if match := _EVERY.fullmatch(written):
        every = timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        if every < _LEAST:
            raise _bad(text)
        return FailoverTestSchedule(every=every)
    match = _TIME.fullmatch(written)
    if match is None or int(match[2]) > 23 or int(match[3]) > 59:
        raise _bad(text)
    return FailoverTestSchedule(days=_days(text, match[1]), minute=int(match[2]) * 60 + int(match[3]))


def _days(text: str, written: str) -> frozenset[int]:
    if written == "daily":
        return frozenset(range(7))
    first, _, last = written.partition("-")
    if first not in _DAYS or (last and last not in _DAYS):
        raise _bad(text)
    begin = _DAYS.index(first)
    count = (_DAYS.index(last) - begin) % 7 + 1 if last else 1
    return frozenset((begin + each) % 7 for each in range(count))


def _bad(text: str) -> BadTestSchedule:
    return BadTestSchedule(
        f"{text[:60]!r} does not say when to test",
        value=text[:200],
        cure="Write for example `daily 03:00`, `mon-fri 22:30`, `sun 04:00`, or `every 12h` (5m at least).",
    )
