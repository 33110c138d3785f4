"""What a VM's replication needs of a link: from what was measured to a bandwidth for an RPO, and back. Pure.

Changes are looked at as a fluid that is poured into a pipe: what the pipe does not take in an interval waits
for the next one, and is as late as it takes to drain. To that comes what each cycle costs by itself, the more
the fuller the pipe is. What is measured is what was sent at the RPO of then: at a longer one less is sent
where a guest writes the same places again, so for that these are upper bounds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.replication.figures import percentile
from holdfast.replication.history import Kept
from holdfast.replication.intervals import Rows

CYCLE_SECONDS = 0.25
"""That a cycle costs by itself: capturing, committing, the link's latency."""
_FULLEST = 0.95
"""Part of the pipe that a cycle's own cost is reckoned with at most."""


@dataclass(frozen=True)
class Measured:
    """One after another, none overlapping."""

    seconds: Rows
    changed: Rows
    """Bytes."""

    @property
    def average(self) -> float:
        """Bytes a second."""
        total = float(self.seconds.sum())
        return float(self.changed.sum()) / total if total else 0.0

    @property
    def peak(self) -> float:
        """Bytes a second of the interval with most."""
        return float((self.changed / self.seconds).max(initial=0.0)) if len(self.seconds) else 0.0


@dataclass(frozen=True)
class ExpectedRpo:
    """Seconds; of the time that was measured, had the link been like that."""

    p50: float
    p99: float
    worst: float


def measured(kept: Iterable[Sequence[Kept]]) -> Measured:
    """Of one replication, or of several that share a link. What nobody measured counts as no time."""
    found: dict[int, list[float]] = {}
    for each in kept:
        for row in each:
            seconds, changed = found.setdefault(row.begin, [0.0, 0.0])
            found[row.begin] = [max(seconds, float(row.span)), changed + row.interval.changed]
    rows = np.array([found[begin] for begin in sorted(found)]).reshape(-1, 2)
    return Measured(rows[:, 0], rows[:, 1])


def expected_rpo(of: Measured, bandwidth: float, ratio: float) -> ExpectedRpo | None:
    """At a bandwidth in bytes a second; `ratio`: bytes on the link for each that changed.

    None: nothing is known.
    """
    if not len(of.seconds) or bandwidth <= 0:
        return None
    waiting, rows = 0.0, []
    for seconds, changed in zip(of.seconds, of.changed * ratio, strict=True):
        full = min(float(changed / seconds / bandwidth), _FULLEST)
        cost = CYCLE_SECONDS * (1 + full) / (1 - full)
        before, waiting = waiting, max(0.0, float(waiting + changed - bandwidth * seconds))
        low, high = sorted((before / bandwidth + cost, waiting / bandwidth + cost))
        high = max(high, low + 1e-9)
        rows.append((low, high, float(seconds) / (high - low)))
    segments = np.array(rows)
    return ExpectedRpo(
        percentile(segments, 0.5) or 0.0, percentile(segments, 0.99) or 0.0, float(segments[:, 1].max())
    )


def needed_bandwidth(of: Measured, rpo: float, ratio: float, *, always: bool = False) -> float | None:
    """The least in bytes a second that holds an RPO for 99 % of the time, or always.

    None: nothing is known, or no link makes a cycle that short.
    """

    def holds(bandwidth: float) -> bool:
        expected = expected_rpo(of, bandwidth, ratio)
        return expected is not None and (expected.worst if always else expected.p99) <= rpo

    low, high = 1.0, max(1.0, 64 * of.peak * ratio)
    if not holds(high):
        return None
    while high - low > max(1.0, 0.001 * high):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
