"""How far a cycle is, as the process that ships tells it: now and then, for people who wait."""

import time
from collections.abc import Callable
from enum import StrEnum

from holdfast.spec.model import Frozen

EACH_SECONDS = 0.5
"""At least that lies between two of what is told."""


class Phase(StrEnum):
    COMPARING = "comparing"
    """Both sides of the disks are hashed."""
    COPYING = "copying"
    """All of the disks is gone through."""
    CHANGES = "changes"
    """What changed is sent."""


class Moving(Frozen):
    phase: Phase
    done: int
    """Bytes of the disks that were gone through; in `CHANGES`, that were sent as content or zeroes."""
    total: int
    """Bytes of all disks; in `CHANGES` 0: it is not known here."""
    sent: int
    """Bytes of frames since the cycle began."""


Told = Callable[[Moving], None]


class Meter:
    """Of one cycle. Cheap: what is counted in between is a comparison of two numbers."""

    def __init__(self, told: Told, clock: Callable[[], float] = time.monotonic) -> None:
        self._told = told
        self._clock = clock
        self._next = clock() + EACH_SECONDS
        self._phase, self._total, self._done = Phase.CHANGES, 0, 0

    def begin(self, phase: Phase, total: int = 0) -> None:
        self._phase, self._total, self._done = phase, total, 0

    def more(self, count: int, sent: int) -> None:
        """So many bytes more are done. By one thread at a time."""
        self.at(self._done + count, sent)

    def at(self, done: int, sent: int) -> None:
        """So many bytes are done in all."""
        self._done = done
        now = self._clock()
        if now >= self._next:
            self._next = now + EACH_SECONDS
            self._told(Moving(phase=self._phase, done=done, total=self._total, sent=sent))
