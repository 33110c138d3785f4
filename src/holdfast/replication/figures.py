"""Statistics of one replication over a window: RPO and its distribution, lag, throughput, catching up. Pure.

The RPO at an instant is how much would be lost if the source were lost then: the age of the newest point that
is whole on the replica. It grows by a second each second and falls when a cycle is acknowledged, to the time
that the cycle took. Percentiles are over time, not over cycles: p99 is the RPO that 99 % of the window was
better than. Times are seconds of one monotonic clock, the source's.
"""

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 12 * 3600.0
"""Seconds that are looked at, as Hyper-V's monitoring interval has them."""
_MOST = 100_000
"""Cycles that are remembered; of more the oldest are forgotten."""
_RECENT = 60.0
"""Seconds of which throughput and churn are the average."""


@dataclass(frozen=True)
class CycleDone:
    """One that the replica acknowledged."""

    taken: float
    """When the instant was that it holds."""
    acknowledged: float
    changed: int
    """Bytes that the guest changed."""
    sent: int
    """Bytes on the wire."""


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


class ReplicationFigures:
    """Collects what happens; one for each replication."""

    def __init__(self, target: float, started: float, window: float = WINDOW) -> None:
        """`target`: the RPO that is wanted. `started`: when the replica was first current."""
        self._target = target
        self._window = window
        self._started = started
        self._cycles: deque[CycleDone] = deque(maxlen=_MOST)
        self._errors: deque[float] = deque(maxlen=_MOST)
        self._pending: deque[tuple[float, int]] = deque(maxlen=_MOST)
        """When so many bytes were seen to be waiting."""

    def done(self, cycle: CycleDone) -> None:
        """Cycles come in the order of their instants."""
        self._cycles.append(cycle)

    def failed(self, at: float) -> None:
        self._errors.append(at)

    def waiting(self, at: float, pending: int) -> None:
        """So many bytes are changed and not acknowledged, counted now."""
        self._pending.append((at, pending))

    def now(self, at: float) -> Figures:
        """Everything as of `at`, which nothing reported is later than."""
        self._forget(at - self._window)
        done = [each for each in self._cycles if each.acknowledged > at - self._window]
        segments = self._segments(at)
        pending = self._pending[-1][1] if self._pending else 0
        throughput, churn = self._rates(at, pending)
        changed = [each.changed for each in done]
        return Figures(
            rpo_seconds=at - self._cycles[-1].taken if self._cycles else None,
            rpo_p50_seconds=percentile(segments, 0.50),
            rpo_p99_seconds=percentile(segments, 0.99),
            lag_bytes=pending,
            throughput=throughput,
            churn=churn,
            catch_up_seconds=catch_up(pending, throughput, churn),
            cycles=len(done),
            errors=sum(each > at - self._window for each in self._errors),
            average_bytes=sum(changed) / len(changed) if changed else 0.0,
            largest_bytes=max(changed, default=0),
            average_latency=sum(each.acknowledged - each.taken for each in done) / len(done) if done else 0.0,
            missed_ratio=part_above(segments, self._target),
        )

    def _forget(self, before: float) -> None:
        """The last one before the window stays: the RPO at the window's beginning is its."""
        while len(self._cycles) > 1 and self._cycles[1].acknowledged <= before:
            self._cycles.popleft()
        while self._errors and self._errors[0] <= before:
            self._errors.popleft()
        while len(self._pending) > 1 and self._pending[1][0] <= before:
            self._pending.popleft()

    def _segments(self, at: float) -> list[tuple[float, float]]:
        """Stretches in which the RPO only grew: its value at their begin and at their end."""
        begin = max(at - self._window, self._started)
        found = []
        ends = itertools.chain((each.acknowledged for each in itertools.islice(self._cycles, 1, None)), [at])
        for cycle, end in zip(self._cycles, ends, strict=False):
            low, high = max(cycle.acknowledged, begin), min(end, at)
            if low < high:
                found.append((low - cycle.taken, high - cycle.taken))
        return found

    def _rates(self, at: float, pending: int) -> tuple[float, float]:
        since = max(at - _RECENT, self._started)
        length = at - since
        if length <= 0:
            return 0.0, 0.0
        arrived = sum(each.changed for each in self._cycles if each.acknowledged > since)
        before = next((count for when, count in reversed(self._pending) if when <= since), 0)
        return arrived / length, max(0.0, arrived + pending - before) / length


def percentile(segments: Sequence[tuple[float, float]], part: float) -> float | None:
    """The value that something was below for `part` of the time, having grown evenly in each segment.

    Exact: the time spent below a value is a sum over segments, which is searched by halving.
    """
    total = sum(high - low for low, high in segments)
    if total <= 0:
        return None
    low, high = min(each[0] for each in segments), max(each[1] for each in segments)
    for _ in range(60):
        middle = (low + high) / 2
        if total * (1 - part_above(segments, middle)) < part * total:
            low = middle
        else:
            high = middle
    return high


def part_above(segments: Sequence[tuple[float, float]], value: float) -> float:
    """For which part of the time, 0 to 1, it was above `value`."""
    total = sum(high - low for low, high in segments)
    if total <= 0:
        return 0.0
    return sum(max(0.0, high - max(low, value)) for low, high in segments) / total


def catch_up(pending: int, throughput: float, churn: float) -> float | None:
    """Seconds until nothing is pending, at these rates in bytes a second; None: never."""
    if pending <= 0:
        return 0.0
    left = throughput - churn
    seconds = pending / left if left > 0 else math.inf
    return seconds if math.isfinite(seconds) else None
