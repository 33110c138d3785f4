"""What a link's receiver is given: one replica of the store, as `receiving.Holding`. Blocks."""

from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from blake3 import blake3

from holdfast.replication.resync import LEAF
from holdfast.replication.store.errors import CycleRefused
from holdfast.replication.store.record import Cycle, Point
from holdfast.replication.store.replica import Replica
from holdfast.replication.wire import Ask, Begin, DiskShape, Standing

_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp() * 1e6
_KEPT = 16
"""Regions whose leaves are remembered, 32 KiB each: they are asked for after their root."""


class StoredIncoming(Protocol):
    """As the store gives it; `receiving.Incoming`."""

    def write(self, disk: str, offset: int, data: memoryview) -> None: ...
    def zero(self, disk: str, offset: int, length: int) -> None: ...
    def attach(self, name: str, data: bytes) -> None: ...
    def commit(self) -> Point: ...
    def abandon(self) -> None: ...


class StoredReplica:
    """One replica; used by the thread of the one link that it is sent over.

    Args:
        room: gives the bytes that it may take, asked before each cycle; None: all there is.
        tested: gives when a point was tested last; None: never.
        confirm: what is here is of an earlier replication, so nobody knows what changed since then until
            all of it was compared, or sent; called when it was.
        arrived: told that a cycle is whole.
    """

    def __init__(
        self,
        replica: Replica,
        room: Callable[[], int | None],
        confirm: Callable[[], None] | None = None,
        tested: Callable[[], datetime | None] = lambda: None,
        arrived: Callable[[], None] = lambda: None,
    ) -> None:
        self._replica = replica
        self._room = room
        self._confirm = confirm
        self._tested = tested
        self._arrived = arrived
        self._leaves: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()

    def standing(self) -> Standing:
        points = self._replica.points()
        if not points:
            # Of an initial copy that was cut off, what came is not to be sent again.
            return Standing(cycle=0, compare=self._replica.begun())
        newest = points[-1]
        return Standing(
            cycle=newest.cycle,
            disks=tuple(DiskShape(id=disk, size=size) for disk, size in newest.disks.items()),
            compare=self._confirm is not None or self._replica.must_compare(),
            points=len(points),
            lost=sum(bool(each.lost) for each in points),
            tested_us=int(tested.timestamp() * 1e6) if (tested := self._tested()) else 0,
        )

    def begin(self, begin: Begin) -> StoredIncoming:
        if begin.taken_us > _LATEST:
            raise CycleRefused("the source sent a cycle of no time", value=begin.taken_us)
        whole = begin.compared or not begin.base
        if not whole and (self._confirm is not None or self._replica.must_compare()):
            raise CycleRefused(
                "the source sent changes to what it has not compared",
                value=begin.base,
                cure="The source compares both sides when it connects again.",
            )
        self._replica.allow(self._room())
        cycle = Cycle(
            number=begin.cycle,
            taken=datetime.fromtimestamp(begin.taken_us / 1e6, UTC),
            disks={disk.id: disk.size for disk in begin.disks},
            base=begin.base,
            compared=begin.compared,
            consistency=begin.consistency,
        )
        self._leaves.clear()
        incoming = self._replica.begin(cycle)
        return _Telling(incoming, self.confirm if whole else None, self._arrived)

    def digests(self, asked: Ask) -> bytes:
        if asked.block == 0:
            return blake3(self._of_leaves(asked)).digest()
        if asked.block == LEAF:
            return self._of_leaves(asked)
        return self._replica.hashes(asked.disk, asked.offset, asked.length, asked.block)

    def _of_leaves(self, asked: Ask) -> bytes:
        where = (asked.disk, asked.offset, asked.length)
        found = self._leaves.pop(where, None)
        if found is None:
            found = self._replica.hashes(*where, LEAF)
        self._leaves[where] = found
        while len(self._leaves) > _KEPT:
            self._leaves.popitem(last=False)
        return found

    def confirm(self) -> None:
        """Everything that is here is of this replication now."""
        if self._confirm is not None:
            self._confirm()
            self._confirm = None


class _Telling:
    """A cycle of which it is told that it is whole.

    `confirm`: of one that does not depend on what was here before, or was compared with it.
    """

    def __init__(
        self, incoming: StoredIncoming, confirm: Callable[[], None] | None, arrived: Callable[[], None]
    ) -> None:
        self._incoming = incoming
        self._confirm = confirm
        self._arrived = arrived
        self.write = incoming.write
        self.zero = incoming.zero
        self.attach = incoming.attach
        self.abandon = incoming.abandon

    def commit(self) -> Point:
        point = self._incoming.commit()
        if self._confirm is not None:
            self._confirm()
        self._arrived()
        return point
