"""A disk on another platform that is read while it lies there: whole, or what changed since a mark.

Sources differ in what they can: some give ranges, some only the whole from its beginning. Whoever
copies one asks for areas in order and gets their bytes in order.
"""

from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Area:
    """Bytes of a disk."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class Piece:
    """Bytes that a disk holds at a place."""

    offset: int
    data: bytes | bytearray | memoryview


class RemoteDisk(Protocol):
    @property
    def size(self) -> int:
        """Bytes that a guest sees."""
        ...

    async def areas(self, since: str | None) -> tuple[Area, ...]:
        """What changed after a mark, in order; `since` None: whatever may hold data.

        Raises ChangesUnknown: the source cannot say it any more; all of the disk is to be read.
        """
        ...

    def read(self, areas: Sequence[Area]) -> AsyncGenerator[Piece, None]:
        """What the disk holds there, ascending; a place that is left out holds zeros.

        `areas` are in order and do not overlap.
        """
        ...


def after(areas: Iterable[Area], position: int) -> tuple[Area, ...]:
    """What of `areas` lies at `position` and behind it."""
    left = []
    for area in areas:
        start = max(area.start, position)
        if start < area.end:
            left.append(Area(start, area.end - start))
    return tuple(left)


class Remaining:
    """Areas that are gone through from the front."""

    def __init__(self, areas: Iterable[Area]) -> None:
        """`areas` are in order and do not overlap."""
        self._areas = deque(areas)

    def take(self, end: int) -> list[Area]:
        """What lies before `end`; it remains no longer."""
        taken: list[Area] = []
        while self._areas and self._areas[0].start < end:
            area = self._areas.popleft()
            stop = min(area.end, end)
            taken.append(Area(area.start, stop - area.start))
            if stop < area.end:
                self._areas.appendleft(Area(stop, area.end - stop))
        return taken


def merged(areas: Iterable[Area], gap: int) -> tuple[Area, ...]:
    """In order, and as one where they touch, overlap or are at most `gap` bytes apart."""
    found: list[Area] = []
    for area in sorted(areas, key=lambda each: each.start):
        if found and area.start <= found[-1].end + gap:
            last = found.pop()
            area = Area(last.start, max(last.end, area.end) - last.start)
        if area.length:
            found.append(area)
    return tuple(found)
