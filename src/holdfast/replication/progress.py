"""What is told of a replication besides its figures: how far it is, what failed, was tried, and is next.

Lives in memory: all of it is of now. Times are by the monotonic clock.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.replication.moving import Moving
from holdfast.replication.shipping import Shipped
from holdfast.spec.errors import HoldfastError, RemoteError

_LAST = 12
"""Cycles and tries that are remembered as evidence."""
_WIRE_SECONDS = 60.0
"""Of which the rate on the link is the average."""
_RATE_SECONDS = 10.0
"""Of which the rate of a cycle under way is the average."""


@dataclass(frozen=True)
class Fault:
    """Why a try failed."""

    id: str
    """Of the error; of a refusal by the receiver, of its error."""
    message: str
    cure: str
    refused: bool = False
    """The receiver said it."""

    @classmethod
    def of(cls, error: HoldfastError | OSError) -> "Fault":
        if not isinstance(error, HoldfastError):
            return cls("os-error", str(error) or type(error).__name__, "")
        found = error.wire_id if isinstance(error, RemoteError) else error.id
        if found == "replica-peer-refused" and isinstance(error.value, str):
            return cls(error.value[:64], error.message, error.cure, refused=True)
        return cls(found, error.message, error.cure)


@dataclass(frozen=True)
class Try:
    """One cycle that arrived or failed."""

    ended: float
    seconds: float
    changed: int = 0
    """Bytes of content and zeroes."""
    sent: int = 0
    """Bytes of frames."""
    fault: Fault | None = None


@dataclass
class Progress:
    connected: bool = False
    initial: bool = False
    """All of it is on its way."""
    comparing: bool = False
    fault: Fault | None = None
    """Why the last try failed; None: it did not."""
    failing_since: float = 0.0
    attempts: int = 0
    """That failed, one after another."""
    not_consistent: str = ""
    """Why the guest could not be brought to rest for a point that was to be application-consistent."""
    points: int = 0
    lost: int = 0
    """Points that are damaged over there."""
    tested_us: int = 0
    """When one was tested last, microseconds since 1970 by the receiver's clock; 0: never."""
    newest: int = 0
    """Number of the newest cycle over there, milliseconds since 1970 by this host's clock of then."""
    next_at: float | None = None
    """When the next try begins; None: one is under way, or waits for something to happen."""
    tries: deque[Try] = field(default_factory=lambda: deque(maxlen=_LAST))
    cycles: int = 0
    """That arrived since this daemon runs, of which also the following are."""
    failures: int = 0
    changed: int = 0
    """Bytes of content and zeroes."""
    sent: int = 0
    """Bytes of frames."""
    moving: Moving | None = None
    """Of the cycle under way; None: it is short, or none is."""
    clock: Callable[[], float] = time.monotonic
    _began: float = 0.0
    _sent: deque[tuple[float, int]] = field(default_factory=deque)
    """When so many bytes had gone over the link, of each cycle that arrived lately."""
    _marks: deque[tuple[float, int]] = field(default_factory=deque)
    """When so much of the cycle under way was done."""

    @property
    def error(self) -> str:
        """Why the last try failed; empty: it did not."""
        return self.fault.message if self.fault else ""

    def begins(self) -> None:
        """A try begins."""
        self._began, self.next_at, self.moving = self.clock(), None, None
        self._marks.clear()

    def moved(self, moving: Moving) -> None:
        now = self.clock()
        if self.moving is None or self.moving.phase != moving.phase:
            self._marks.clear()
        self.moving = moving
        self._marks.append((now, moving.done))
        while len(self._marks) > 2 and self._marks[0][0] < now - _RATE_SECONDS:
            self._marks.popleft()

    def rate(self) -> float | None:
        """Bytes a second that the cycle under way is done with; None: that is not known yet."""
        if len(self._marks) < 2:
            return None
        (first, before), (last, after) = self._marks[0], self._marks[-1]
        return (after - before) / (last - first) if last > first else None

    def arrived(self, shipped: Shipped) -> None:
        seconds = self.clock() - self._began
        changed = shipped.written + shipped.zeroed
        self.tries.append(Try(self.clock(), seconds, changed, shipped.sent))
        self.points, self.lost, self.tested_us = shipped.points, shipped.lost, shipped.tested_us
        self.cycles += 1
        self.changed += changed
        self.sent += shipped.sent
        self._sent.append((self.clock(), shipped.sent))
        self._forget()

    def wire_rate(self) -> float:
        """Bytes a second that went over the link lately, that of the cycle under way included."""
        self._forget()
        under_way = self.moving.sent if self.moving else 0
        since = min(self._began, *(at for at, _ in self._sent)) if self._sent else self._began
        seconds = min(_WIRE_SECONDS, max(self.clock() - since, 1.0))
        return (sum(sent for _, sent in self._sent) + under_way) / seconds

    def _forget(self) -> None:
        while self._sent and self._sent[0][0] <= self.clock() - _WIRE_SECONDS:
            self._sent.popleft()

    def failed(self, fault: Fault) -> bool:
        """A try failed; True: the one before did not."""
        first = self.fault is None
        if first:
            self.failing_since, self.attempts = self.clock(), 0
        self.fault = fault
        self.attempts += 1
        self.failures += 1
        self.tries.append(Try(self.clock(), self.clock() - self._began, fault=fault))
        self.connected = self.comparing = self.initial = False
        self.moving = None
        return first

    def gives_way(self) -> None:
        """The try was dropped for others that want the disks: it did not fail."""
        self.connected, self.moving = False, None

    def went_well(self) -> float | None:
        """A try ended well; returns for how many seconds tries failed before, None: the last did not."""
        self.comparing = self.initial = False
        self.moving = None
        if self.fault is None:
            return None
        self.fault, self.attempts = None, 0
        return self.clock() - self.failing_since

    def waits(self, seconds: float | None) -> None:
        """The next try begins after so long; None: once something happens."""
        self.next_at = None if seconds is None else self.clock() + seconds
