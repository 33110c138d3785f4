"""A receiver takes whole cycles of what its source said it would send, and nothing else."""

from collections import deque
from collections.abc import Iterable

import pytest
from blake3 import blake3
from held_in_memory import Held

from holdfast.replication import wire
from holdfast.replication.link import Buffer, LinkLost
from holdfast.replication.receiving import serve
from holdfast.replication.wire import (
    Abandon,
    Ask,
    Begin,
    Commit,
    Committed,
    Digests,
    DiskShape,
    FrameRefused,
    Hello,
    Kind,
    Open,
    Ping,
    Pong,
    Refused,
)
from holdfast.spec.errors import HoldfastError, Insufficient

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
DISKS = (DiskShape(id="disk0", size=1 << 20), DiskShape(id="disk1", size=1 << 20))
OPEN = Open(replication=ID, vm=ID, name="web", disks=DISKS)


class Said:
    """A link over which a source says all it has to say, and goes."""

    def __init__(self, frames: Iterable[wire.Message | tuple[Kind, bytes]]) -> None:
        self.frames = deque(frames)
        self.answers: list[wire.Spoken] = []
        self.closed = False

    def send(self, kind: Kind, *parts: Buffer, size: int | None = None) -> None:
        self.answers.append(wire.parse(kind, memoryview(b"".join(parts))))

    def receive(self, limit: float = 1.0) -> wire.Spoken:
        if not self.frames:
            raise LinkLost("gone")
        frame = self.frames.popleft()
        kind, body = frame if isinstance(frame, tuple) else (frame.kind, wire.body(frame))
        return wire.parse(kind, memoryview(body))

    def waiting(self) -> bool:
        return bool(self.frames)

    def close(self) -> None:
        self.closed = True


def begin(cycle: int, base: int, disks: tuple[DiskShape, ...] = DISKS) -> Begin:
    return Begin(cycle=cycle, base=base, taken_us=1, disks=disks)


def write(disk: int, offset: int, data: bytes) -> tuple[Kind, bytes]:
    return Kind.WRITE, wire.table(disk, [(offset, len(data))]) + data


def served(held: Held, *frames: wire.Message | tuple[Kind, bytes]) -> tuple[Said, HoldfastError]:
    link = Said([Hello(host="north"), OPEN, *frames])
    with pytest.raises(HoldfastError) as caught:
        serve(link, "south", lambda _: held)
    assert link.closed
    return link, caught.value


def test_whole_cycles_are_taken_and_acknowledged_once_they_are_durable() -> None:
    held = Held(DISKS)
    link, error = served(
        held,
        begin(1, 0),
        write(0, 4096, b"a" * 4096),
        (Kind.ATTACH, wire.part("spec", last=False) + b"{"),
        (Kind.ATTACH, wire.part("spec", last=True) + b"}"),
        Commit(cycle=1, written=4096, zeroed=0),
        Ping(number=9),
        begin(3, 1),
        write(1, 0, b"b" * 4096),
        (Kind.ZERO, wire.table(0, [(4096, 2048)])),
        Commit(cycle=3, written=4096, zeroed=2048),
    )
    assert isinstance(error, LinkLost)
    answers = [type(said).__name__ for said in link.answers]
    assert answers == ["Hello", "Standing", "Committed", "Pong", "Committed"]
    assert link.answers[2:] == [Committed(cycle=1), Pong(number=9), Committed(cycle=3)]
    assert held.images["disk0"][4096:8192] == bytes(2048) + b"a" * 2048
    assert held.images["disk1"][:4096] == b"b" * 4096
    assert held.attachments == {"spec": b"{}"}
    assert not held.dropped


@pytest.mark.parametrize(
    "frames",
    [
        [write(2, 0, b"a")],
        [write(0, (1 << 20) - 1, b"ab")],
        [(Kind.ZERO, wire.table(1, [(0, (1 << 20) + 1)]))],
        [Commit(cycle=5, written=1, zeroed=0)],
        [write(0, 0, b"a"), Commit(cycle=5, written=0, zeroed=0)],
        [write(0, 0, b"a"), Commit(cycle=6, written=1, zeroed=0)],
        [(Kind.ATTACH, wire.part("spec", last=False)), Commit(cycle=5, written=0, zeroed=0)],
        [(Kind.ATTACH, wire.part("spec", last=True)), (Kind.ATTACH, wire.part("spec", last=True))],
        [(Kind.ATTACH, wire.part(f"a{number}", last=True)) for number in range(17)],
        [(Kind.ATTACH, wire.part("a", last=False) + bytes(1 << 20))] * 65,
        [begin(6, 4)],
        [Ping(number=1)],
        [Abandon(cycle=4)],
        [OPEN],
    ],
)
def test_a_cycle_that_is_not_what_was_said_is_dropped(
    frames: list[wire.Message | tuple[Kind, bytes]],
) -> None:
    held = Held(DISKS, 4)
    link, error = served(held, begin(5, 4), *frames)
    assert isinstance(error, FrameRefused)
    assert isinstance(link.answers[-1], Refused)
    assert link.answers[-1].id == "replica-frame-refused"
    assert held.cycle == 4


@pytest.mark.parametrize("wrong", [begin(4, 4), begin(3, 3), begin(6, 5), begin(6, 3)])
def test_cycles_out_of_order_are_refused(wrong: Begin) -> None:
    link, _ = served(Held(DISKS, 4), wrong)
    assert isinstance(link.answers[-1], Refused)
    assert link.answers[-1].id == "replica-cycle-out-of-order"


def test_a_disk_named_twice_is_refused() -> None:
    _, error = served(Held(DISKS), begin(1, 0, (DISKS[0], DISKS[0])))
    assert isinstance(error, FrameRefused)


def test_a_source_that_goes_or_gives_up_leaves_nothing() -> None:
    held = Held(DISKS)
    _, error = served(held, begin(1, 0), write(0, 0, b"a"), Abandon(cycle=1), begin(2, 0), write(0, 0, b"b"))
    assert isinstance(error, LinkLost)
    assert (held.cycle, held.dropped) == (0, 2)


def test_what_the_store_refuses_the_source_is_told() -> None:
    held = Held(DISKS)
    held.failure = Insufficient("no room", cure="Make some.")
    link, error = served(held, begin(1, 0), write(0, 0, b"a"))
    assert error is held.failure
    assert link.answers[-1] == Refused(id="insufficient", message="no room", cure="Make some.")


@pytest.mark.parametrize(
    "frames", [[OPEN], [Ping(number=1)], [Hello(host="a", protocol="x")], [Hello(host="a"), begin(1, 0)]]
)
def test_other_beginnings_are_refused(frames: list[wire.Message]) -> None:
    link = Said(frames)
    with pytest.raises(HoldfastError):
        serve(link, "south", lambda _: Held(DISKS))
    assert isinstance(link.answers[-1], Refused)


def test_digests_are_told_of_what_is_held() -> None:
    held = Held(DISKS)
    held.images["disk0"][4096:8192] = b"a" * 4096
    wanted = blake3(bytes(4096)).digest() + blake3(b"a" * 4096).digest()
    link, _ = served(
        held,
        Ask(disk="disk0", offset=0, length=8192, block=4096),
        Ask(disk="disk0", offset=0, length=8192, block=0),
    )
    leaf = blake3(bytes(4096) + b"a" * 4096).digest()
    assert link.answers[2:] == [Digests(digests=wanted.hex()), Digests(digests=blake3(leaf).hexdigest())]


def test_a_compared_cycle_may_follow_any_other() -> None:
    held = Held(DISKS, cycle=5)
    first = begin(7, 3).model_copy(update={"compared": True})
    link, _ = served(held, first, Commit(cycle=7, written=0, zeroed=0))
    assert link.answers[-1] == Committed(cycle=7)
