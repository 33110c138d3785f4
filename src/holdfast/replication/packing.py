"""How hard to compress: whatever gets content across in the least time now, found out by trying.

A hard level pays on a slow link, none on a fast one or for content that does not shrink. The time for each
byte is kept for every level, measured where it matters: packing and sending together. What did not shrink
goes as it is, and its sending tells what that takes: so nothing is packed for long that does not shrink.
"""

import time
from collections.abc import Callable

from holdfast.replication.link import Buffer
from holdfast.replication.wire import WINDOW_LOG
from holdfast.replication.zstandard import CompressionParameter, ZstdCompressor

LEVELS: tuple[int | None, ...] = (None, -5, 1, 3, 6)
"""Of zstd, from the cheapest on; None: as it is."""
_AGAIN, _SELDOM = 32, 128  # frames until a neighbour of the best level is tried again, at first and at most
_WEIGHT = 0.3  # of a new measurement
_SMALLEST = 16 * 1024  # bytes; less is sent as it is, and says nothing about levels


class Packing:
    """The choice for one link."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._costs: list[float | None] = [None] * len(LEVELS)
        self._best = 1
        self._count = 0
        """Frames since a neighbour was tried."""
        self._again = _AGAIN
        self._turn = 0

    @property
    def level(self) -> int | None:
        """What is thought best now."""
        return LEVELS[self._best]

    def send(self, parts: tuple[Buffer, ...], send: Callable[[tuple[Buffer, ...], int | None], None]) -> None:
        """Pack one body in the way that is to be tried or is best, and send it.

        `send` is given the body's parts, and its plain size where they are packed.
        """
        size = sum(len(part) for part in parts)
        if size < _SMALLEST:
            send(parts, None)
            return
        chosen = self._next()
        begun = self._clock()
        level = LEVELS[chosen]
        packed = None if level is None else _packed(parts, level)
        made = self._clock()
        if packed is not None and len(packed) < size:
            send((packed,), size)
        else:
            send(parts, None)
            self._learn(0, (self._clock() - made) / size)
        if chosen:
            self._learn(chosen, (self._clock() - begun) / size)

    def _next(self) -> int:
        """The best level or, now and then, a neighbour of it."""
        around = [each for each in (self._best - 1, self._best + 1) if 0 <= each < len(LEVELS)]
        for each in (self._best, *around):
            if self._costs[each] is None:
                return each
        self._count += 1
        if self._count < self._again:
            return self._best
        self._count, self._turn = 0, self._turn + 1
        self._again = min(2 * self._again, _SELDOM)
        return around[self._turn % len(around)]

    def _learn(self, chosen: int, cost: float) -> None:
        before = self._costs[chosen]
        self._costs[chosen] = cost if before is None else before + _WEIGHT * (cost - before)
        known = [(each, index) for index, each in enumerate(self._costs) if each is not None]
        best = min(known)[1]
        if best != self._best:
            self._best, self._again = best, _AGAIN


def _packed(parts: tuple[Buffer, ...], level: int) -> bytes:
    options: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.window_log: WINDOW_LOG,
    }
    compressor = ZstdCompressor(options=options)
    return b"".join([*(compressor.compress(part) for part in parts), compressor.flush()])
