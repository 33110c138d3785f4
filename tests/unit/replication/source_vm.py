"""A source of cycles whose content at every instant is known, to be compared with what a replica holds."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from holdfast.replication.store.incoming import Incoming
from holdfast.replication.store.record import Cycle, Point
from holdfast.replication.store.replica import Replica

BLOCK = 4096
START = datetime(2026, 1, 1, tzinfo=UTC)


class SourceVm:
    """Disks of some blocks; `sent` holds them, with attachments, as each cycle left them."""

    def __init__(self, seed: int, disks: dict[str, int] | None = None) -> None:
        self._random = random.Random(seed)
        sizes = disks or {"a": 24 * BLOCK, "b": 9 * BLOCK + 512}
        self.disks = {name: bytearray(size) for name, size in sizes.items()}
        self.attached: dict[str, bytes] = {}
        self.number = 0
        self._written: set[tuple[str, int]] = set()
        self._zeroed: set[tuple[str, int]] = set()
        self.sent: dict[int, tuple[dict[str, bytes], dict[str, bytes]]] = {}
        """By the cycle's number."""

    def cycle(self, **more: bool) -> Cycle:
        self.number += 1
        sizes = {name: len(data) for name, data in self.disks.items()}
        base = max(self.sent, default=0)
        return Cycle(self.number, START + timedelta(seconds=self.number), sizes, base=base, **more)

    def change(self, incoming: Incoming, most: int = 6) -> None:
        """Some random writes, zeroes and now and then an attachment, on both sides."""
        self._written, self._zeroed = set(), set()
        for _ in range(self._random.randint(1, most)):
            name = self._random.choice(sorted(self.disks))
            disk = self.disks[name]
            first = self._random.randrange(-(-len(disk) // BLOCK))
            offset = first * BLOCK
            length = min(self._random.randint(1, 3) * BLOCK, len(disk) - offset)
            blocks = {(name, each) for each in range(first, first + -(-length // BLOCK))}
            # One cycle either writes a block or zeroes it.
            if self._random.random() < 0.25 and not blocks & self._written:
                self._zeroed |= blocks
                disk[offset : offset + length] = bytes(length)
                incoming.zero(name, offset, length)
            elif not blocks & self._zeroed:
                self._written |= blocks
                data = self._random.randbytes(16) * (length // 16)
                disk[offset : offset + length] = data
                incoming.write(name, offset, memoryview(data))
        if self._random.random() < 0.4:
            name = self._random.choice(["spec", "firmware"])
            self.attached[name] = self._random.randbytes(50)
            incoming.attach(name, self.attached[name])

    def send(self, replica: Replica, before_commit: Callable[[], None] = lambda: None) -> Point:
        """One whole cycle."""
        incoming = replica.begin(self.cycle())
        self.change(incoming)
        before_commit()
        self.remember()
        return incoming.commit()

    def remember(self) -> None:
        """What a commit that is about to begin will have brought."""
        disks = {name: bytes(data) for name, data in self.disks.items()}
        self.sent[self.number] = disks, dict(self.attached)


def same(replica: Replica, source: SourceVm, point: Point) -> bool:
    """Whether a point is what the source was at that cycle."""
    disks, attached = source.sent[point.cycle]
    if {name: len(data) for name, data in disks.items()} != point.disks:
        return False
    for name, data in disks.items():
        whole = -(-len(data) // BLOCK) * BLOCK
        if replica.read(point.number, name, 0, whole)[: len(data)] != data:
            return False
    return replica.attachments(point.number) == attached
