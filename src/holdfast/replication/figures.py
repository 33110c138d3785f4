"""Statistics of one replication over a window: RPO and its distribution, lag, throughput, catching up. Pure.

The RPO at an instant is how much would be lost if the source were lost then: the age of the newest point that
is whole on the replica. It grows by a second each second and falls when a cycle is acknowledged, to the time
that the cycle took. Percentiles are over time, not over cycles: p99 is the RPO that 99 % of the window was
better than; what lies further back than some minutes is known to 8 % of it. Times are seconds of one
monotonic clock, the source's.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.replication.folding import Folded
from holdfast.replication.intervals import Interval, spread_of

Rows = NDArray[np.float64]

WINDOW = 12 * 3600.0
"""Seconds that are looked at, as Hyper-V's monitoring interval has them."""
_MOST = 100_000
"""Cycles that are remembered; of more the oldest are forgotten."""
_RECENT = 60.0
"""Seconds of which throughput and churn are the average."""
_EXACT, _MINUTE = 600.0, 60.0
"""Seconds of which all cycles are remembered, and by which those before are joined."""
_TAKEN, _ACKNOWLEDGED, _CHANGED = range(3)


@dataclass(frozen=True)
class CycleDone:
    """One that the replica acknowledged."""

    taken: float
    """When the instant was that it holds."""
    acknowledged: float
    changed: int
    """Bytes that the guest changed."""


@dataclass(frozen=True)
class Figures:
    """Of now; None where there is nothing to tell it from."""

    rpo_seconds: float | None
    rpo_p50_seconds: float | None
    rpo_p99_seconds: float | None
    lag_bytes: int
    """Changed on the source and not yet whole on the replica."""
    throughput: float
    """Bytes of changes that are acknowledged in a second."""
    churn: float
    """Bytes that the guest changes in a second."""
    catch_up_seconds: float | None
    """Until the replica is current again, as things go; None: it falls behind further."""
    cycles: int
    errors: int
    average_bytes: float
    largest_bytes: int
    average_latency: float
    """Seconds from a cycle's instant until it was acknowledged."""
    missed_ratio: float
    """Part of the window's targets that were not met."""
    since_arrived: float | None
    """Seconds since a cycle was acknowledged."""


class _Done:
    """Cycles in the order of their instants, 24 bytes each: half a day of seconds is 1 MB, at most 2."""

    def __init__(self) -> None:
        self._rows = np.empty((64, 3))
        self._start = self._end = 0

    @property
    def rows(self) -> Rows:
        """Of taken, acknowledged, changed; not to be kept over a call of another method."""
        return self._rows[self._start : self._end]

    def append(self, cycle: CycleDone) -> None:
        if self._end == len(self._rows):
            rows = self.rows[-_MOST:]
            # Twice what is needed: so moving them costs little for each.
            self._rows = np.empty((2 * len(rows) + 64, 3))
            self._rows[: len(rows)] = rows
            self._start, self._end = 0, len(rows)
        self._rows[self._end] = (cycle.taken, cycle.acknowledged, cycle.changed)
        self._end += 1

    def forget(self, before: float) -> None:
        """But the last one before: it was the newest then."""
        self._start += max(0, int(np.searchsorted(self.rows[:, _ACKNOWLEDGED], before, side="right")) - 1)


class ReplicationFigures:
    """Collects what happens; one for each replication."""

    def __init__(self, target: float, started: float, window: float = WINDOW) -> None:
        """`target`: the RPO that is wanted. `started`: when the replica was first current."""
        self._target = target
        self._window = window
        self.started = started
        self._done = _Done()
        self._errors: deque[float] = deque(maxlen=_MOST)
        self._pending: deque[tuple[float, int]] = deque(maxlen=_MOST)
        """When so many bytes were seen to be waiting."""
        self._folded = Folded()
        """What lies further back than `_folded_until`."""
        self._folded_until = math.nextafter(started, -math.inf)  # one may arrive at that very instant

    def recall(self, earlier: Iterable[tuple[float, Interval]]) -> None:
        """What was kept of the time before `started`, with the time at which each began."""
        self._folded.extend(earlier)

    def aim(self, target: float) -> None:
        """Another RPO is wanted from now on, and looked at what was before, too."""
        self._target = target

    def done(self, cycle: CycleDone) -> None:
        """Cycles come in the order of their instants."""
        self._done.append(cycle)
        if cycle.acknowledged > self._folded_until + _EXACT + 2 * _MINUTE:
            self._fold(cycle.acknowledged)

    @property
    def newest(self) -> CycleDone | None:
        """The last one that was acknowledged."""
        rows = self._done.rows
        if not len(rows):
            return None
        taken, acknowledged, changed = rows[-1]
        return CycleDone(float(taken), float(acknowledged), int(changed))

    def failed(self, at: float) -> None:
        self._errors.append(at)

    def waiting(self, at: float, pending: int) -> None:
        """So many bytes are changed and not acknowledged, counted now."""
        self._pending.append((at, pending))
        while len(self._pending) > 1 and self._pending[1][0] <= at - _RECENT:
            self._pending.popleft()

    def now(self, at: float) -> Figures:
        """Everything as of `at`, which nothing reported is later than; about a millisecond."""
        self._fold(at)
        rows, folded = self._done.rows, self._folded
        since = max(self._folded_until, at - self._window)
        within = self._within(since, at)
        latencies = within[:, _ACKNOWLEDGED] - within[:, _TAKEN]
        cycles = len(within) + folded.cycles
        segments = np.concatenate((_weighted(self._segments(since, at)), folded.segments()))
        errors = sum(since < each for each in self._errors) + folded.errors
        pending = self._pending[-1][1] if self._pending else 0
        throughput, churn = self._rates(at, pending)
        return Figures(
            rpo_seconds=at - float(rows[-1, _TAKEN]) if len(rows) else None,
            rpo_p50_seconds=percentile(segments, 0.50),
            rpo_p99_seconds=percentile(segments, 0.99),
            lag_bytes=pending,
            throughput=throughput,
            churn=churn,
            catch_up_seconds=catch_up(pending, throughput, churn),
            cycles=cycles,
            errors=errors,
            average_bytes=(float(within[:, _CHANGED].sum()) + folded.changed) / max(1, cycles),
            largest_bytes=max(folded.largest, int(within[:, _CHANGED].max(initial=0))),
            average_latency=(float(latencies.sum()) + folded.latency) / max(1, cycles),
            missed_ratio=part_above(segments, self._target),
            since_arrived=at - float(rows[-1, _ACKNOWLEDGED]) if len(rows) else None,
        )

    def interval(self, since: float, until: float) -> Interval:
        """What happened after `since` and until `until`; both lie within the last minutes."""
        within = self._within(since, until)
        segments = self._segments(since, until)
        rows = self._done.rows
        grown = (rows[1:, _ACKNOWLEDGED] - rows[:-1, _TAKEN])[
            (rows[1:, _ACKNOWLEDGED] > since) & (rows[1:, _ACKNOWLEDGED] <= until)
        ]
        waited = [count for when, count in self._pending if since < when <= until]
        return Interval(
            seconds=float((segments[:, 1] - segments[:, 0]).sum()),
            cycles=len(within),
            missed=int((grown > self._target).sum()),
            errors=sum(since < each <= until for each in self._errors),
            changed=int(within[:, _CHANGED].sum()),
            largest=int(within[:, _CHANGED].max(initial=0)),
            latency=float((within[:, _ACKNOWLEDGED] - within[:, _TAKEN]).sum()),
            pending=max(waited, default=0),
            spread=spread_of(segments),
        )

    def _fold(self, at: float) -> None:
        """What lies further back than `_EXACT` is kept by minutes, where the window is longer than that."""
        while self._folded_until + _MINUTE <= at - min(_EXACT, self._window):
            until = self._folded_until + _MINUTE
            if at - until < self._window:
                self._folded.add(self._folded_until, self.interval(self._folded_until, until))
            self._folded_until = until
        self._folded.forget(at - self._window)
        self._done.forget(self._folded_until)
        while self._errors and self._errors[0] <= self._folded_until:
            self._errors.popleft()

    def _within(self, since: float, until: float) -> Rows:
        """Cycles that arrived after the one and until the other."""
        rows = self._done.rows
        return rows[(rows[:, _ACKNOWLEDGED] > since) & (rows[:, _ACKNOWLEDGED] <= until)]

    def _segments(self, since: float, until: float) -> Rows:
        """Stretches in which the RPO only grew: its value at their begin and at their end."""
        rows = self._done.rows
        ends = np.minimum(np.append(rows[1:, _ACKNOWLEDGED], until)[: len(rows)], until)
        begins = np.maximum(rows[:, _ACKNOWLEDGED], max(since, self.started))
        segments = np.stack((begins, ends), axis=1)[begins < ends]
        grown: Rows = segments - rows[begins < ends][:, [_TAKEN]]
        return grown

    def _rates(self, at: float, pending: int) -> tuple[float, float]:
        since = max(at - _RECENT, self.started)
        length = at - since
        if length <= 0:
            return 0.0, 0.0
        rows = self._done.rows
        arrived = float(rows[rows[:, _ACKNOWLEDGED] > since][:, _CHANGED].sum())
        before = next((count for when, count in reversed(self._pending) if when <= since), 0)
        return arrived / length, max(0.0, arrived + pending - before) / length


def percentile(segments: Rows, part: float) -> float | None:
    """The value that something was below for `part` of the time.

    `segments`: rows of two values, between which it grew evenly, and where there is a third one the seconds
    that it took to grow by 1; else it took one. Exact: the time spent below a value is a sum over segments,
    which is searched by halving.
    """
    total = float(((segments[:, 1] - segments[:, 0]) * _weights(segments)).sum())
    if total <= 0:
        return None
    low, high = float(segments[:, 0].min()), float(segments[:, 1].max())
    for _ in range(40):
        middle = (low + high) / 2
        if 1 - part_above(segments, middle) < part:
            low = middle
        else:
            high = middle
    return high


def part_above(segments: Rows, value: float) -> float:
    """For which part of the time, 0 to 1, it was above `value`."""
    lows, highs = segments[:, 0], segments[:, 1]
    weights = _weights(segments)
    total = float(((highs - lows) * weights).sum())
    if total <= 0:
        return 0.0
    return float((np.maximum(0.0, highs - np.maximum(lows, value)) * weights).sum()) / total


def _weights(segments: Rows) -> Rows:
    return segments[:, 2] if segments.shape[1] > 2 else np.ones(len(segments))


def _weighted(segments: Rows) -> Rows:
    return np.column_stack((segments, np.ones(len(segments))))


def catch_up(pending: int, throughput: float, churn: float) -> float | None:
    """Seconds until nothing is pending, at these rates in bytes a second; None: never."""
    if pending <= 0:
        return 0.0
    left = throughput - churn
    seconds = pending / left if left > 0 else math.inf
    return seconds if math.isfinite(seconds) else None
