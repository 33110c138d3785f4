"""Intervals of a sliding window, joined: as old ones leave it their sums are taken off again. Pure and cheap.

So the figures of half a day cost no more than those of its last minutes.
"""

from collections import deque
from collections.abc import Iterable

import numpy as np

from holdfast.replication.intervals import EDGES, Interval, Rows


class Folded:
    def __init__(self) -> None:
        self._parts: deque[tuple[float, Interval]] = deque()
        self._spread = np.zeros(len(EDGES))
        self.cycles = 0
        self.errors = 0
        self.changed = 0
        self.latency = 0.0
        """Seconds of all cycles."""

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def largest(self) -> int:
        return max((each.largest for _, each in self._parts), default=0)

    def add(self, begin: float, interval: Interval) -> None:
        """One that begins at or after all others."""
        self._parts.append((begin, interval))
        self._count(interval, 1)

    def extend(self, parts: Iterable[tuple[float, Interval]]) -> None:
        for begin, interval in sorted(parts, key=lambda each: each[0]):
            self.add(begin, interval)

    def forget(self, before: float) -> None:
        """Those that began before."""
        while self._parts and self._parts[0][0] < before:
            self._count(self._parts.popleft()[1], -1)

    def segments(self) -> Rows:
        """As `Interval.segments`."""
        spread = {int(index): float(self._spread[index]) for index in np.flatnonzero(self._spread > 1e-6)}
        return Interval(spread=spread).segments()

    def _count(self, interval: Interval, sign: int) -> None:
        self.cycles += sign * interval.cycles
        self.errors += sign * interval.errors
        self.changed += sign * interval.changed
        self.latency += sign * interval.latency
        for index, seconds in interval.spread.items():
            self._spread[index] += sign * seconds
