"""Which recovery points are kept: `all:10m,1m:1h,1h:1d,1d:30d`. Pure.

Each rule says how close together points are kept, and up to which age: here every one of the last ten
minutes, one a minute of the last hour, one an hour of the last day, one a day of the last thirty days. Ages
count from the newest point, so that a replica whose source is silent keeps what it has.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from holdfast.spec.errors import InvalidInput

MOST_RULES = 16
_LONGEST = 10 * 366 * 86400
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_RULE = re.compile(r"\s*(all|\d{1,9}[smhdw])\s*:\s*(\d{1,9}[smhdw])\s*", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class BadRetention(InvalidInput):
    id = "bad-retention"


class Timed(Protocol):
    """A point, as far as retention is concerned."""

    @property
    def number(self) -> int: ...

    @property
    def taken(self) -> datetime: ...


@dataclass(frozen=True)
class Rule:
    every: timedelta
    """One point in each of these, counted from 1970-01-01 UTC; zero: all points."""
    age: timedelta
    """Of points up to this old."""

    def __str__(self) -> str:
        return f"{_length(self.every) if self.every else 'all'}:{_length(self.age)}"


@dataclass(frozen=True)
class RetentionPlan:
    rules: tuple[Rule, ...] = ()
    """From the closest to the farthest apart, and from the youngest to the oldest. None: the newest only."""

    def __str__(self) -> str:
        return ",".join(map(str, self.rules))


DEFAULT = "all:10m,1m:1h,1h:1d,1d:30d"


def parse_plan(text: str) -> RetentionPlan:
    """A plan as people write it; `none` or nothing keeps the newest point only.

    Raises:
        BadRetention: it is no plan, or a rule keeps more points, or no older ones, than the rule before it.
    """
    if text.strip() in ("", "none"):
        return RetentionPlan()
    parts = text.split(",")
    if len(parts) > MOST_RULES:
        raise _bad(text, f"it has {len(parts)} rules, more than {MOST_RULES}")
    rules: list[Rule] = []
    for part in parts:
        match = _RULE.fullmatch(part)
        if match is None:
            raise _bad(text, f"{part[:40]!r} is no rule")
        every = timedelta() if match[1] == "all" else _duration(text, match[1])
        rule = Rule(every, _duration(text, match[2]))
        if rule.every > rule.age:
            raise _bad(text, f"{part.strip()!r} keeps points farther apart than it keeps them long")
        if rules and (rule.every <= rules[-1].every or rule.age <= rules[-1].age):
            raise _bad(text, f"{part.strip()!r} must keep fewer and older points than the rule before it")
        rules.append(rule)
    return RetentionPlan(tuple(rules))


def kept(points: Iterable[Timed], plan: RetentionPlan) -> frozenset[int]:
    """Numbers of the points to keep; always the one of the latest instant.

    Of each interval it is the oldest that is kept: so a point that once was chosen is chosen until it is too
    old for its rule, and what later rules need is still there.
    """
    ordered = sorted(points, key=lambda each: (each.taken, each.number))
    if not ordered:
        return frozenset()
    newest = ordered[-1].taken
    chosen = {ordered[-1].number}
    for rule in plan.rules:
        young = [each for each in ordered if newest - each.taken <= rule.age]
        chosen |= {each.number for each in (_first_of_each(young, rule.every) if rule.every else young)}
    return frozenset(chosen)


def _first_of_each(points: Sequence[Timed], every: timedelta) -> list[Timed]:
    found: dict[int, Timed] = {}
    for each in points:
        found.setdefault((each.taken - _EPOCH) // every, each)
    return list(found.values())


def most_points(plan: RetentionPlan, cycle: timedelta) -> int:
    """How many points are kept at most, about, at one cycle in each `cycle`."""
    return 1 + sum(int(each.age / max(each.every, cycle)) + 1 for each in plan.rules)


def _duration(text: str, written: str) -> timedelta:
    seconds = int(written[:-1]) * _SECONDS[written[-1]]
    if not 0 < seconds <= _LONGEST:
        raise _bad(text, f"{written} is not between a second and ten years")
    return timedelta(seconds=seconds)


def _length(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    for unit in "dhm":
        if seconds % _SECONDS[unit] == 0:
            return f"{seconds // _SECONDS[unit]}{unit}"
    return f"{seconds}s"


def _bad(text: str, why: str) -> BadRetention:
    return BadRetention(
        f"{text[:100]!r} is no retention plan: {why}",
        value=text[:200],
        cure=f"Write rules from the closest together to the farthest apart, for example {DEFAULT}",
    )
