"""Who may send how much, and when: limits for host, peer and VM by time of day, and priorities. Pure.

A limit is a token bucket that may go into debt by one piece, so a piece is never cut and the long-run rate is
kept exactly. Among those that no limit holds back the turn goes by start-time fair queueing (Goyal, Vin,
Cheng: SFQ, 1996) with a weight for each priority: under contention `high` gets most of the room, and `low`
moves on. Times are seconds of a monotonic clock; limits by time of day look at the wall clock.
"""

import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from holdfast.spec.errors import InvalidInput
from holdfast.spec.replica import Priority


class BadLimit(InvalidInput):
    id = "bad-bandwidth-limit"


WEIGHTS = {Priority.HIGH: 16, Priority.NORMAL: 4, Priority.LOW: 1}
"""Shares of those who want to send at the same time."""
_BURST = 0.25
"""Seconds at the full rate that a bucket which was idle lets pass at once."""
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([kmg]?)(bit|b)(?:/s|ps)", re.IGNORECASE | re.ASCII)
_WINDOW = re.compile(
    r"(?:(mon|tue|wed|thu|fri|sat|sun)(?:-(mon|tue|wed|thu|fri|sat|sun))?\s+)?"
    r"(\d{2}):(\d{2})-(\d{2}):(\d{2})\s*=\s*(.+)",
    re.IGNORECASE | re.ASCII,
)
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MOST_WINDOWS = 32
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class Window:
    """A part of some days with a rate of its own."""

    days: frozenset[int]
    """On which it begins; Monday is 0."""
    begin: int
    """Minutes after midnight."""
    end: int
    """The same; not after `begin`: on the next day."""
    rate: float | None

    def holds(self, now: datetime) -> bool:
        """`now` is local time."""
        minute, day = now.hour * 60 + now.minute, now.weekday()
        if self.begin < self.end:
            return day in self.days and self.begin <= minute < self.end
        before = (day - 1) % 7
        return (day in self.days and minute >= self.begin) or (before in self.days and minute < self.end)


@dataclass(frozen=True)
class Limit:
    """Bytes a second, by time of day."""

    rate: float | None = None
    """Outside of all windows; None: as much as there is."""
    windows: tuple[Window, ...] = ()
    """The first that holds counts."""

    def at(self, now: datetime) -> float | None:
        for each in self.windows:
            if each.holds(now):
                return each.rate
        return self.rate


def parse_limit(text: str) -> Limit:
    """`200Mbit/s`, or `none`, and rates for times: `1Gbit/s,mon-fri 08:00-18:00=50Mbit/s,22:00-06:00=none`.

    Prefixes are powers of 1000 and `B/s` is bytes, as is usual for rates. Raises BadLimit.
    """
    parts = [each.strip() for each in text.split(",")]
    if len(parts) > _MOST_WINDOWS:
        raise _bad(text, f"it has {len(parts)} parts")
    rate: float | None = None
    windows: list[Window] = []
    for number, part in enumerate(parts):
        if match := _WINDOW.fullmatch(part):
            windows.append(_window(text, match))
        elif number == 0:
            rate = _rate(text, part)
        else:
            raise _bad(text, f"{part[:40]!r} is no rate for a time")
    return Limit(rate, tuple(windows))


def _window(text: str, match: re.Match[str]) -> Window:
    first, last, *clock, rate = match.groups()
    hour, minute, end_hour, end_minute = (int(each) for each in clock)
    begin, end = hour * 60 + minute, end_hour * 60 + end_minute
    if begin >= _DAY_MINUTES or end > _DAY_MINUTES or max(minute, end_minute) > 59 or begin == end:
        raise _bad(text, f"{match[0][:40]!r} is no time of day")
    days = range(7)
    if first is not None:
        start = _DAYS.index(first.lower())
        count = (_DAYS.index(last.lower()) - start) % 7 + 1 if last else 1
        days = range(start, start + count)
    return Window(frozenset(day % 7 for day in days), begin, end, _rate(text, rate.strip()))


def _rate(text: str, written: str) -> float | None:
    if written.lower() == "none":
        return None
    match = _RATE.fullmatch(written)
    if match is None:
        raise _bad(text, f"{written[:40]!r} is no rate")
    number, prefix, unit = match.groups()
    # "b" alone is bits only in lower case, as in "Mb/s".
    bits = unit.lower() == "bit" or unit == "b"
    rate = float(number) * _FACTORS[prefix.lower()] / (8 if bits else 1)
    if rate < 1:
        raise _bad(text, f"{written!r} lets nothing pass")
    return rate


def _bad(text: str, why: str) -> BadLimit:
    return BadLimit(
        f"{text[:100]!r} is no limit: {why}",
        value=text[:200],
        cure="Write for example 200Mbit/s, or 1Gbit/s,mon-fri 08:00-18:00=50Mbit/s",
    )


class Bucket:
    """One limit, as it is used up."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._tokens = 0.0
        self._at: float | None = None
        self._rate: float | None = None

    def wait(self, at: float, wall: datetime) -> float:
        """Seconds until the next piece may pass, at the rate of now; 0: it may."""
        self._refill(at, wall)
        if self._rate is None or self._tokens > 0:
            return 0.0
        return max(-self._tokens / self._rate, 1e-6)

    def take(self, size: int) -> None:
        if self._rate is not None:
            self._tokens -= size

    def _refill(self, at: float, wall: datetime) -> None:
        rate = self.limit.at(wall)
        if rate is None:
            self._tokens = 0.0
        elif self._at is None or self._rate is None:
            self._tokens = rate * _BURST
        else:
            self._tokens = min(self._tokens + (at - self._at) * rate, rate * _BURST)
        self._at, self._rate = at, rate


@dataclass(eq=False)
class Flow:
    """One replication: a VM to a peer. Host's and peer's buckets are shared with other flows."""

    priority: Priority
    host: Bucket
    peer: Bucket
    vm: Bucket
    _waiting: deque[int] = field(default_factory=deque)
    _start: float = 0.0
    """The virtual time at which its next piece begins."""

    def wait(self, at: float, wall: datetime) -> float:
        return max(each.wait(at, wall) for each in (self.host, self.peer, self.vm))


class Pace:
    """All flows of one host. Whoever wants to send asks; `turn` says whose piece goes next."""

    def __init__(self) -> None:
        self._flows: list[Flow] = []
        """Those with pieces waiting."""
        self._virtual = 0.0

    def ask(self, flow: Flow, size: int) -> None:
        """It wants to send a piece of so many bytes, after those that it asked for before."""
        if not flow._waiting:
            self._flows.append(flow)
            flow._start = max(flow._start, self._virtual)
        flow._waiting.append(size)

    def forget(self, flow: Flow) -> None:
        """It wants nothing any more."""
        if flow._waiting:
            flow._waiting.clear()
            self._flows.remove(flow)

    def turn(self, at: float, wall: datetime) -> tuple[Flow, int] | float | None:
        """The flow that may send now and how much; else the seconds until one may; None: nobody wants to."""
        waits = [each.wait(at, wall) for each in self._flows]
        free = [flow for flow, wait in zip(self._flows, waits, strict=True) if wait <= 0]
        if not free:
            return min(waits, default=None)
        flow = min(free, key=lambda each: each._start)
        self._virtual = max(self._virtual, flow._start)
        self._hold_back(at, wall)
        size = flow._waiting.popleft()
        flow._start += size / WEIGHTS[flow.priority]
        if not flow._waiting:
            self._flows.remove(flow)
        for each in (flow.host, flow.peer, flow.vm):
            each.take(size)
        return flow, size

    def _hold_back(self, at: float, wall: datetime) -> None:
        """What a limit keeps from somebody while others send is not made up for afterwards.

        Flows of one peer stay in their order: they are moved on together.
        """
        held: dict[Bucket, list[Flow]] = {}
        for flow in self._flows:
            if flow.peer.wait(at, wall) > 0:
                held.setdefault(flow.peer, []).append(flow)
            elif flow.vm.wait(at, wall) > 0:
                flow._start = max(flow._start, self._virtual)
        for flows in held.values():
            late = self._virtual - min(each._start for each in flows)
            for flow in flows:
                flow._start += max(0.0, late)
