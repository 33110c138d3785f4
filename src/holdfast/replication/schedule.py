"""When cycles may be sent: windows, in the words of limits, and when the initial copy begins. Pure.

Times are local and naive, as people write them; where clocks change, a window is as much longer or shorter.
"""

import functools
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast.replication.pace import BadLimit, Window, parse_limit
from holdfast.spec.errors import InvalidInput

ALWAYS, NOW = "always", "now"
_AT = re.compile(r"at\s+(\d{2}):(\d{2})", re.IGNORECASE | re.ASCII)
_WEEK = 7 * 24 * 60
_MONDAY = datetime(2024, 1, 1)


class BadSchedule(InvalidInput):
    id = "replica-bad-schedule"


@dataclass(frozen=True)
class Schedule:
    windows: tuple[Window, ...] = ()
    """Empty: always."""

    def opens_in(self, now: datetime) -> float:
        """Seconds until something may be sent; 0: now."""
        if not self.windows or any(each.holds(now) for each in self.windows):
            return 0.0
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        begins = [
            midnight + timedelta(days=day, minutes=each.begin)
            for each in self.windows
            for day in range(8)
            if (now.weekday() + day) % 7 in each.days
        ]
        return min((begin - now).total_seconds() for begin in begins if begin > now)

    def longest_gap(self) -> float:
        """Seconds for which nothing may be sent, at most."""
        if not self.windows:
            return 0.0
        week = [
            any(each.holds(_MONDAY + timedelta(minutes=minute)) for each in self.windows)
            for minute in range(_WEEK)
        ]
        longest = run = 0
        for sends in week * 2:  # so that a gap over the end of the week is whole
            run = 0 if sends else run + 1
            longest = max(longest, run)
        return 60.0 * longest


@functools.lru_cache(maxsize=256)
def parse_schedule(text: str) -> Schedule:
    """`always`, or windows: `22:00-06:00`, `mon-fri 08:00-18:00,sat 00:00-24:00`. Raises BadSchedule."""
    if text.strip().lower() == ALWAYS:
        return Schedule()
    try:
        windows = parse_limit(",".join(f"{each.strip()}=none" for each in text.split(","))).windows
    except BadLimit as error:
        raise BadSchedule(
            f"{text[:100]!r} is no schedule",
            value=text[:200],
            cure="Write for example 22:00-06:00, or mon-fri 08:00-18:00,sat 00:00-24:00, or always.",
        ) from error
    return Schedule(windows)


def initial_from(text: str, enabled: datetime) -> datetime:
    """When the initial copy begins: `now`, or `at 22:00`, the next such time after it was enabled.

    Raises BadSchedule.
    """
    if text.strip().lower() == NOW:
        return enabled
    match = _AT.fullmatch(text.strip())
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        raise BadSchedule(
            f"{text[:100]!r} does not say when the initial copy begins",
            value=text[:200],
            cure="Write now, or for example 'at 22:00'.",
        )
    begin = enabled.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    return begin if begin >= enabled else begin + timedelta(days=1)
