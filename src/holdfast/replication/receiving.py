"""The receiver's side of a link: what a source sends, checked against what it said before, and stored.

    HELLO ▶ QUERY, PREPARE, TAKE_OVER, RELEASE, YIELD ...
    HELLO ▶ OPEN ▶ (ASK ... BEGIN ▶ WRITE, ZERO, ATTACH ... ▶ COMMIT | ABANDON) ... PING

The source is hostile: it can fill what it was given and no more, and a cycle that is not whole, or not what
COMMIT says, is dropped. Blocks; a thread for each link.
"""

from collections.abc import Callable
from typing import Protocol

from holdfast.replication import wire
from holdfast.replication.link import Link, LinkLost, greet, refusal, refuse, tell
from holdfast.replication.wire import (
    Ask,
    Attach,
    Begin,
    Commit,
    Committed,
    Digests,
    FrameRefused,
    Ping,
    Pong,
    Prepare,
    Query,
    Release,
    TakeOver,
    Write,
    Yield,
    Zero,
)
from holdfast.spec.errors import Conflict, HoldfastError
from holdfast.spec.units import MIB

IDLE_SECONDS = 3600.0
"""How long a source may have nothing to send. Sources say PING more often."""
_CYCLE_SECONDS = 120.0
"""How long it may say nothing within a cycle."""
_MOST_ATTACHED = 64 * MIB
_MOST_ATTACHMENTS = 16


Asked = Query | Prepare | TakeOver | Release | Yield
"""What may be asked about turns."""


class CycleOutOfOrder(Conflict):
    """The source sends changes to a cycle that is not the one held here."""

    id = "replica-cycle-out-of-order"


class Incoming(Protocol):
    """A cycle on its way in; nothing of it counts until `commit`."""

    def write(self, disk: str, offset: int, data: memoryview) -> None: ...
    def zero(self, disk: str, offset: int, length: int) -> None: ...
    def attach(self, name: str, data: bytes) -> None: ...
    def commit(self) -> object:
        """Returns once all of it is on stable storage."""
        ...

    def abandon(self) -> None:
        """Drop it; nothing happens where it was committed."""
        ...


class Holding(Protocol):
    """What is held of one VM."""

    def standing(self) -> wire.Standing: ...
    def begin(self, begin: Begin) -> Incoming:
        """Raises a HoldfastError where it cannot be taken."""
        ...

    def digests(self, asked: Ask) -> bytes:
        """Raises a HoldfastError where they cannot be told."""
        ...


def serve(
    link: Link,
    host: str,
    opened: Callable[[wire.Open], Holding],
    asked: Callable[[Asked], wire.TurnIs] | None = None,
) -> None:
    """Serve one source until it goes, or until it is refused; closes the link.

    Args:
        host: what this host calls itself.
        opened: gives the holding of a VM; raises a HoldfastError where the source may not have it.
        asked: answers what is asked about turns; raises a HoldfastError where that is refused.

    Raises:
        LinkLost: the source went.
        HoldfastError: it was refused for this, and told so.
    """
    try:
        greet(link, host)
        first = link.receive()
        while asked is not None and isinstance(first, Asked):
            tell(link, asked(first))
            first = link.receive()
        if not isinstance(first, wire.Open):
            raise refusal(first)
        holding = opened(first)
        tell(link, holding.standing())
        while True:
            said = link.receive(IDLE_SECONDS)
            if isinstance(said, Ping):
                tell(link, Pong(number=said.number))
            elif isinstance(said, Ask):
                tell(link, Digests(digests=holding.digests(said).hex()))
            elif isinstance(said, Begin):
                _receive(link, holding, said)
            else:
                raise refusal(said)
    except LinkLost:
        link.close()
        raise
    except HoldfastError as error:
        refuse(link, error)
        raise


def _receive(link: Link, holding: Holding, begin: Begin) -> None:
    held = holding.standing().cycle
    if begin.cycle <= held or (begin.base not in (0, held) and not begin.compared):
        raise CycleOutOfOrder(
            f"cycle {begin.cycle} changes cycle {begin.base}, and cycle {held} is held",
            value=begin.base,
            cure="The source finds out what is held when it connects again.",
        )
    if len({disk.id for disk in begin.disks}) != len(begin.disks):
        raise _wrong("a BEGIN with a disk that it names twice")
    incoming = holding.begin(begin)
    try:
        if _Cycle(begin, incoming).whole(link):
            incoming.commit()
            standing = holding.standing()
            told = {"points": standing.points, "lost": standing.lost, "tested_us": standing.tested_us}
            tell(link, Committed(cycle=begin.cycle, **told))
    finally:
        incoming.abandon()


class _Cycle:
    def __init__(self, begin: Begin, incoming: Incoming) -> None:
        self._begin = begin
        self._incoming = incoming
        self._written = self._zeroed = self._attached = 0
        self._parts: dict[str, bytearray] = {}
        self._whole: set[str] = set()

    def whole(self, link: Link) -> bool:
        """Take all of it in; False: the source wants no more of it."""
        while True:
            said = link.receive(_CYCLE_SECONDS)
            if isinstance(said, Write):
                self._write(said)
            elif isinstance(said, Zero):
                self._zero(said)
            elif isinstance(said, Attach):
                self._attach(said)
            elif isinstance(said, Commit):
                self._check(said)
                return True
            elif isinstance(said, wire.Abandon) and said.cycle == self._begin.cycle:
                return False
            else:
                raise refusal(said)

    def _write(self, write: Write) -> None:
        disk = self._disk(write)
        at = 0
        for offset, length in write.extents:
            self._incoming.write(disk, offset, write.payload[at : at + length])
            at += length
        self._written += at

    def _zero(self, zero: Zero) -> None:
        disk = self._disk(zero)
        for offset, length in zero.extents:
            self._incoming.zero(disk, offset, length)
            self._zeroed += length

    def _attach(self, attach: Attach) -> None:
        parts = self._parts.setdefault(attach.name, bytearray())
        self._attached += len(attach.part)
        full = self._attached > _MOST_ATTACHED or len(self._parts) > _MOST_ATTACHMENTS
        if full or attach.name in self._whole:
            raise _wrong("more attachments than a cycle may have")
        parts += attach.part
        if attach.last:
            self._whole.add(attach.name)
            self._incoming.attach(attach.name, bytes(parts))
            parts.clear()

    def _check(self, commit: Commit) -> None:
        wanted = (self._begin.cycle, self._written, self._zeroed)
        if (commit.cycle, commit.written, commit.zeroed) != wanted or self._whole != set(self._parts):
            raise _wrong("a COMMIT of something else than what came")

    def _disk(self, said: Write | Zero) -> str:
        if said.disk >= len(self._begin.disks):
            raise _wrong(f"an extent of disk {said.disk}, of {len(self._begin.disks)}")
        disk = self._begin.disks[said.disk]
        if sum(said.extents[-1]) > disk.size:
            raise _wrong(f"an extent behind the end of {disk.id}")
        return disk.id


def _wrong(what: str) -> FrameRefused:
    return FrameRefused(
        f"the source sent {what}",
        cure="See that both hosts run the same version, and what the source logs.",
    )
