"""Cycles whose instant the guest's agent prepared: its file systems, and whom it tells, were at rest.

    recorded that it may be frozen ▶ frozen ▶ the instant ▶ let go ▶ recorded that it is

A daemon that was killed in between is followed by one that lets the guest go at once, whether or not anything
can be sent, and asks again until its agent answers. Where it does not, the cycle is sent as it is, which is
told.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from holdfast.replication.capture import Captured
from holdfast.replication.progress import Progress
from holdfast.replication.replication_records import Replication, ReplicationBook
from holdfast.spec.replica import Consistency
from holdfast.vm.checkpoint_of_machine import GuestNotFrozen
from holdfast.vm.quiesce import Quiesce

log = structlog.get_logger(__name__)

_SOONEST, _AGAIN = 5.0, 60.0
"""Seconds after which a guest that could not be frozen is asked again, at most."""
_THAW_SOONEST, _THAW_LATEST = 0.5, 15.0
"""Seconds after which one that could not be let go is: the first time, and at most."""


class Replicated(Protocol):
    """Whoever keeps the record of a replication as it is now; a `Sender`."""

    replication: Replication


class ConsistentCycles:
    """Of one replication."""

    def __init__(self, book: ReplicationBook, progress: Progress) -> None:
        self._book = book
        self._progress = progress
        self._last: float | None = None
        """When a cycle last arrived whose guest was at rest, by the monotonic clock."""
        self._not_before = self._begun = 0.0
        self._thawing: asyncio.Task[None] | None = None

    def due(self, replication: Replication) -> bool:
        """Whether the next cycle is to be one."""
        every, now = replication.settings.consistent_seconds, time.monotonic()
        if not every:
            self._progress.not_consistent = ""
            return False
        if self._thaws:
            return False
        return now >= self._not_before and (self._last is None or now >= self._last + every)

    @property
    def _thaws(self) -> bool:
        return self._thawing is not None and not self._thawing.done()

    async def begin(
        self, of: Replicated, quiesce: Quiesce, begin: Callable[[], Awaitable[Captured]]
    ) -> Captured:
        """Capture with the guest at rest, else as it is. Raises what `begin` raises."""
        self._begun = time.monotonic()
        # Whatever comes of it, a guest is not frozen time and again.
        every = of.replication.settings.consistent_seconds
        self._not_before = self._begun + min(_AGAIN, max(_SOONEST, every))
        of.replication = await self._book.freezing(of.replication, freezing=True)
        try:
            captured = await quiesce.while_frozen(begin)
        except GuestNotFrozen as error:
            self._progress.not_consistent = error.message
            log.info("a point is not application-consistent", vm=of.replication.vm, error=error.message)
            return await begin()
        of.replication = await self._book.freezing(of.replication, freezing=False)
        return captured.model_copy(update={"consistency": Consistency.APPLICATION})

    def arrived(self, consistency: Consistency) -> None:
        """A cycle is whole over there."""
        if consistency is Consistency.APPLICATION:
            self._last, self._not_before = self._begun, 0.0
            self._progress.not_consistent = ""

    def let_go(self, of: Replicated, quiesce: Quiesce) -> None:
        """A guest that may stand still for an earlier cycle is to write again; nobody waits for that here."""
        if of.replication.freezing and not self._thaws:
            self._thawing = asyncio.create_task(self._thaw(of, quiesce))

    async def _thaw(self, of: Replicated, quiesce: Quiesce) -> None:
        wait = _THAW_SOONEST
        while not await quiesce.thaw():
            self._progress.not_consistent = "the guest's agent does not answer"
            await asyncio.sleep(wait)
            wait = min(2 * wait, _THAW_LATEST)
        of.replication = await self._book.freezing(of.replication, freezing=False)

    def close(self) -> None:
        """What may stand still is let go by the next one."""
        if self._thawing is not None:
            self._thawing.cancel()
