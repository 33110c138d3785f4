"""Whose piece goes over the links next: `pace` for threads that wait for their turn."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime

from holdfast.replication.pace import Bucket, Flow, Limit, Pace, parse_limit
from holdfast.spec.replica import Priority

_LOOK = 1.0
"""Seconds after which somebody who waits looks again at which limit holds."""


class Pacer:
    """All links of one process. Each has one piece waiting at most."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = datetime.now,  # limits by time of day are of local time
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._pace = Pace()
        self._changed = threading.Condition()
        self._granted: Counter[int] = Counter()
        """By `id` of the flow."""
        self._host = Bucket(Limit())
        self._peers: dict[str, Bucket] = {}

    def flow(self, peer: str, priority: Priority, limit: str) -> Flow:
        """A new flow to a peer; `limit` as `pace.parse_limit` reads it. Raises BadLimit."""
        with self._changed:
            shared = self._peers.setdefault(peer, Bucket(Limit()))
            return Flow(priority, self._host, shared, Bucket(parse_limit(limit)))

    def tune(self, flow: Flow, priority: Priority, limit: str) -> None:
        """Change a flow, also while it waits. Raises BadLimit."""
        with self._changed:
            flow.vm.limit = parse_limit(limit)
            flow.priority = priority
            self._changed.notify_all()

    def limit(self, host: str, peers: Mapping[str, str]) -> None:
        """What all flows may send together, and all to one peer; to others as much as there is.

        Raises BadLimit.
        """
        with self._changed:
            self._host.limit = parse_limit(host)
            for peer in {*self._peers, *peers}:
                bucket = self._peers.setdefault(peer, Bucket(Limit()))
                bucket.limit = parse_limit(peers.get(peer, "none"))
            self._changed.notify_all()

    def wait(self, flow: Flow, size: int) -> None:
        """Return once a piece of so many bytes may go."""
        with self._changed:
            self._pace.ask(flow, size)
            while True:
                turn = self._pace.turn(self._clock(), self._wall())
                if isinstance(turn, tuple):
                    self._granted[id(turn[0])] += 1
                    if turn[0] is not flow:
                        self._changed.notify_all()
                if self._granted[id(flow)]:
                    del self._granted[id(flow)]
                    self._changed.notify_all()  # others look whose turn it is now
                    return
                if not isinstance(turn, tuple):
                    # A limit by time of day may end before that.
                    self._changed.wait(None if turn is None else min(turn, _LOOK))
