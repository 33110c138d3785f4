"""What is kept of a stretch of time in which a VM was replicated: sums, largest values, the RPO. Pure.

Intervals that follow one another can be joined, which loses nothing but which of them something was in. The
spread counts for how many seconds the RPO was within each of `EDGES`, each 8 % above the one before, so a
percentile of joined intervals is at most that much beside what was measured.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]

_FIRST, _GROWTH, _COUNT = 0.05, 1.08, 246
EDGES: Rows = np.append(_FIRST * _GROWTH ** np.arange(_COUNT), math.inf)
"""Seconds: the upper ends of what is counted together; the last but one is some 90 days."""
_LONGEST = float(EDGES[-2] * _GROWTH)


@dataclass(frozen=True)
class Interval:
    seconds: float = 0.0
    """In which there was an RPO to measure."""
    cycles: int = 0
    """That arrived."""
    missed: int = 0
    """Targets: how often the RPO had grown above it when a cycle arrived."""
    errors: int = 0
    changed: int = 0
    """Bytes of all cycles."""
    largest: int = 0
    """Bytes of one cycle."""
    latency: float = 0.0
    """Seconds of all cycles, from the instant until it arrived."""
    pending: int = 0
    """Bytes that were seen to wait, at most."""
    spread: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """Seconds by the index in `EDGES`."""

    @property
    def average_bytes(self) -> float:
        return self.changed / self.cycles if self.cycles else 0.0

    @property
    def average_latency(self) -> float:
        return self.latency / self.cycles if self.cycles else 0.0

    def segments(self) -> Rows:
        """Rows of the RPO from, to, and the seconds that it took to grow by 1; see `figures.percentile`."""
        rows = []
        for index, seconds in self.spread.items():
            low = float(EDGES[index - 1]) if index else 0.0
            high = min(float(EDGES[index]), _LONGEST)
            rows.append((low, high, seconds / (high - low)))
        return np.array(rows).reshape(-1, 3)

    def dumped(self) -> str:
        spread = {str(index): round(seconds, 3) for index, seconds in sorted(self.spread.items())}
        values: list[Any] = [round(self.seconds, 3), self.cycles, self.missed, self.errors]
        values += [self.changed, self.largest, round(self.latency, 3), self.pending, spread]
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def loaded(cls, text: str) -> "Interval":
        """Of what `dumped` gave. Raises ValueError."""
        seconds, cycles, missed, errors, changed, largest, latency, pending, spread = json.loads(text)
        return cls(
            seconds=float(seconds),
            cycles=int(cycles),
            missed=int(missed),
            errors=int(errors),
            changed=int(changed),
            largest=int(largest),
            latency=float(latency),
            pending=int(pending),
            spread={int(index): float(each) for index, each in spread.items()},
        )


def joined(intervals: Iterable[Interval]) -> Interval:
    found, spread = Interval(), dict[int, float]()
    for each in intervals:
        found = Interval(
            seconds=found.seconds + each.seconds,
            cycles=found.cycles + each.cycles,
            missed=found.missed + each.missed,
            errors=found.errors + each.errors,
            changed=found.changed + each.changed,
            largest=max(found.largest, each.largest),
            latency=found.latency + each.latency,
            pending=max(found.pending, each.pending),
        )
        for index, seconds in each.spread.items():
            spread[index] = spread.get(index, 0.0) + seconds
    return replace(found, spread=spread)


def spread_of(segments: Rows) -> dict[int, float]:
    """For how many seconds it was within each of `EDGES`; `segments`: rows of two, growing by 1 a second."""
    if not len(segments):
        return {}
    lows, highs = segments[:, :1], segments[:, 1:2]
    below = np.clip(EDGES[:-1] - lows, 0.0, highs - lows).sum(axis=0)
    counts = np.diff(np.append(below, (highs - lows).sum()), prepend=0.0)
    return {int(index): float(counts[index]) for index in np.flatnonzero(counts > 1e-9)}
