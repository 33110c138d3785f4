"""A pinned point read in place, block for block against its checksums, and what changed since an earlier one.

Nothing is opened or written for that: while it is read cycles arrive, points are joined, and what lies before
it goes into the base. A part is read while `upkeep` is held; between two parts others may do their work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from holdfast.replication.store.errors import PointLost, PointNotFound, ReplicaDamaged
from holdfast.replication.store.holdings import Holdings
from holdfast.replication.store.index import (
    BLOCK,
    NO_RANGES,
    RANGE,
    Changes,
    Head,
    Index,
    Ranges,
    merged,
    united,
)
from holdfast.replication.store.record import reason_lost
from holdfast.replication.store.view import View, adjacent, read_checked

_WINDOW = 1 << 14
"""Blocks of which the places are looked up at once: 64 MiB."""


@dataclass
class _Known:
    """What was looked up of one disk lately; of no use once other spans count."""

    spans: Sequence[Index] = ()
    changes: list[Changes] = field(default_factory=list)
    window: int = -1
    within: Changes = field(default_factory=Changes)


class PointReading:
    """Used by several threads at a time.

    Args:
        number: the point. It must be pinned for as long as it is read.
        since: an earlier point, pinned too, since which the changes are wanted; None: all is.

    Raises PointNotFound, PointLost.
    """

    def __init__(self, holdings: Holdings, number: int, since: int | None) -> None:
        self._holdings = holdings
        self.number = number
        with holdings.reading():
            heads = {each.last: each for each in holdings.heads}
            head = heads.get(number)
            if head is None:
                raise PointNotFound(f"there is no point {number}", value=number, cure="List the points.")
            if lost := reason_lost(head, holdings.damages):
                raise PointLost(f"point {number} is lost: {lost}", value=number, cure="Use another point.")
            self.head: Head = head
            before = heads.get(since) if since is not None else None
            self._since = before if before is not None and self._tells(before) else None
        self._known: dict[str, _Known] = {}
        self._changed: dict[str, Ranges] = {}

    def _tells(self, before: Head) -> bool:
        """Whether the spans between the two points are all that changed between them.

        Where something of that time was damaged, what is here now may lack what the earlier point had.
        """
        damaged = any(
            each.first <= self.number and each.found >= before.last for each in self._holdings.damages
        )
        return before.last <= self.number and not damaged

    def since(self, disk: str) -> int | None:
        """The cycle since which the changes of a disk are known; None: they are not."""
        known = self._since is not None and disk in self._since.disks
        return self._since.cycle if self._since is not None and known else None

    def changed(self, disk: str) -> Ranges:
        """Blocks that changed since then: ranges, ascending, apart from each other, within the disk."""
        if self.since(disk) is None:
            return NO_RANGES
        if disk in self._changed:
            return self._changed[disk]
        with self._holdings.reading():
            found = [each.zeros for each in self._looked_up(disk).changes]
            for each in self._looked_up(disk).changes:
                ranges = np.empty(len(each.entries), RANGE)
                ranges["block"], ranges["count"] = each.entries["block"], 1
                found.append(united(ranges))
        whole = united(np.concatenate([*found, NO_RANGES]))
        end = -(-self.head.disks[disk] // BLOCK)
        whole = whole[whole["block"] < end]
        whole["count"] = np.minimum(whole["count"], end - whole["block"])
        self._changed[disk] = whole
        return whole

    def read(self, disk: str, offset: int, length: int) -> bytes:
        """Bytes of a disk; of one whose changes are known of what changed only. Raises ReplicaDamaged."""
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        data = bytearray()
        with self._holdings.reading():
            while first < end:
                window, until = first // _WINDOW, min(end, (first // _WINDOW + 1) * _WINDOW)
                data += self._part(disk, self._within(disk, window), first, until - first)
                first = until
        start = offset % BLOCK
        return bytes(data[start : start + length])

    def is_empty(self, disk: str, offset: int, length: int) -> bool:
        """Whether a part is known to read as zeroes. Offsets are multiples of 4 KiB."""
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        with self._holdings.reading():
            for window in range(first // _WINDOW, (end - 1) // _WINDOW + 1):
                within = self._within(disk, window).within(first, end)
                if len(within.entries):
                    return False
            hole = self._holdings.files.is_hole(self._holdings.base_path(disk), offset, length)
            return hole or _covers(self._within(disk, first // _WINDOW).zeros, first, end)

    def _part(self, disk: str, changes: Changes, first: int, count: int) -> bytearray:
        within = changes.within(first, first + count)
        base = self._holdings.files.read(self._holdings.base_path(disk), first * BLOCK, count * BLOCK)
        data = bytearray(base.ljust(count * BLOCK, b"\0"))
        for begin, length in within.zeros.tolist():
            low, high = max(begin, first) - first, min(begin + length, first + count) - first
            data[low * BLOCK : high * BLOCK] = bytes((high - low) * BLOCK)
        for run in adjacent(within.entries):
            part, bad = read_checked(self._holdings, run)
            if bad:
                raise self._damaged(f"block {int(run['block'][bad[0]])} of disk {disk} is not what arrived")
            at = (int(run["block"][0]) - first) * BLOCK
            data[at : at + len(part)] = part
        return data

    def _damaged(self, why: str) -> ReplicaDamaged:
        return ReplicaDamaged(
            f"point {self.number} cannot be read: {why}",
            value=self.number,
            cure="Nothing: once the damage is found the source compares both sides, and sends what is lost.",
        )

    def _within(self, disk: str, window: int) -> Changes:
        known = self._looked_up(disk)
        if known.window != window:
            first = window * _WINDOW
            known.within, _ = merged([each.within(first, first + _WINDOW) for each in known.changes])
            known.window = window
        return known.within

    def _looked_up(self, disk: str) -> _Known:
        """While `upkeep` is held: until then spans may be joined, or go into the base."""
        since = self._since.last if self._since is not None and disk in self._since.disks else 0
        spans = [
            each for each in self._holdings.spans if each.head.last <= self.number and each.head.first > since
        ]
        known = self._known.get(disk)
        if (
            known is None
            or len(known.spans) != len(spans)
            or any(one is not other for one, other in zip(known.spans, spans, strict=True))
        ):
            if not all(self._holdings.usable(each) for each in spans):
                raise self._damaged("an index that it needs is not what was written")
            view = View(self._holdings, self.number, since)
            known = self._known[disk] = _Known(spans, view.spans(disk))
        return known


def _covers(zeros: Ranges, first: int, end: int) -> bool:
    return any(begin <= first and begin + count >= end for begin, count in zeros.tolist())
