"""Reads what the replicas here hold, again and again, so that damage is found before it is needed.

It costs a small share of the time of their disks, so small replicas are read often and large ones seldom.
A source that sends changes to damaged content is refused, connects again, and compares both sides.
"""

import asyncio
import time

import structlog

from holdfast.catalog.events import EventLog
from holdfast.replication.replica_records import ReplicaBook
from holdfast.replication.store.errors import ReplicaNotFound
from holdfast.replication.store.replica import ReplicaStore
from holdfast.spec.errors import HoldfastError

log = structlog.get_logger(__name__)

_SHARE = 0.1
"""Of the time, that it reads while it is at it."""
_OFTENEST = 60.0
"""Seconds between two times."""
_REST = 4.0
"""Times as long as all replicas took, it rests before it begins again."""


class Scrubbing:
    def __init__(self, book: ReplicaBook, store: ReplicaStore, events: EventLog) -> None:
        self._book = book
        self._store = store
        self._events = events

    async def keep(self) -> None:
        """For ever."""
        wait = _OFTENEST / 2
        while True:
            await asyncio.sleep(wait)
            begun = time.monotonic()
            for held in await self._book.held():
                try:
                    await self.scrub(held.name)
                except (HoldfastError, OSError) as error:
                    log.warning("a replica could not be read", replica=held.name, error=str(error))
            wait = max(_OFTENEST, _REST * (time.monotonic() - begun))

    async def scrub(self, name: str) -> None:
        """Read one replica's journal; damage that is new is told as an event. Raises OSError."""
        try:
            replica = self._store.replica(name)
        except ReplicaNotFound:
            return  # nothing came yet
        known = replica.damages()
        for each in await asyncio.to_thread(replica.verify, lambda took: time.sleep(took * (1 / _SHARE - 1))):
            if each not in known:
                await self._events.emit("replica.damaged", name, {"error": each.reason})
                log.warning("a replica is damaged", replica=name, reason=each.reason)
