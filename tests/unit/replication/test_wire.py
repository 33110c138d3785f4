"""Frames: what is written is read again, and what no source may send is refused, never believed."""

import contextlib
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from holdfast.replication import wire
from holdfast.replication.wire import Begin, DiskShape, FrameRefused, Hello, Kind, NoCommonVersion
from holdfast.spec.turn import Turn

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
DISK = DiskShape(id="disk0", size=1 << 30)
MESSAGES = [
    wire.Hello(host="north"),
    wire.Refused(id="peer-full", message="no room", cure="Make some."),
    wire.Pair(name="north", secret="s", certificate="c"),
    wire.Paired(name="south"),
    wire.Ping(number=7),
    wire.Pong(number=7),
    wire.Open(replication=ID, vm=ID, name="web 1", disks=(DISK,)),
    wire.Standing(cycle=0),
    wire.Begin(cycle=2, base=1, taken_us=1, disks=(DISK,)),
    wire.Commit(cycle=2, written=4096, zeroed=0),
    wire.Committed(cycle=2),
    wire.Ask(disk="disk0", offset=0, length=64 << 20, block=0),
    wire.Digests(digests="ab" * 32),
    wire.Query(vm=ID, turn=Turn.PRIMARY, term=1),
    wire.TurnIs(turn=Turn.FAILED_OVER, term=2),
    wire.TurnIs(turn=Turn.REPLICA, term=2, sender="sha256:" + "0" * 64),
    wire.Prepare(vm=ID, term=2, memory=1 << 30),
    wire.TakeOver(vm=ID, term=2, cycle=7),
    wire.Release(vm=ID, term=2),
    wire.Yield(vm=ID, term=2, to="sha256:" + "0" * 64),
    wire.Abandon(cycle=2),
]

extents = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(1, 1 << 16)), min_size=1, max_size=wire.MOST_EXTENTS
).map(lambda steps: ascending(steps))


def ascending(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found, at = [], 0
    for gap, length in steps:
        found.append((at + gap, length))
        at += gap + length
    return found


def said(kind: Kind, body: bytes) -> wire.Spoken:
    head = wire.parse_header(wire.header(kind, len(body)))
    assert (head.kind, head.length, head.size, head.compressed) == (kind, len(body), len(body), False)
    return wire.parse(kind, memoryview(body))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.kind.name)
def test_messages_are_read_as_they_were_written(message: wire.Message) -> None:
    assert said(message.kind, wire.body(message)) == message


def test_every_kind_is_tested() -> None:
    assert {message.kind for message in MESSAGES} | {Kind.WRITE, Kind.ZERO, Kind.ATTACH} == set(Kind)


@given(extents, st.integers(0, 65535))
def test_extents_are_read_as_they_were_written(chosen: list[tuple[int, int]], disk: int) -> None:
    table = wire.table(disk, chosen)
    assert len(table) == wire.table_bytes(len(chosen))
    zero = said(Kind.ZERO, table)
    assert isinstance(zero, wire.Zero)
    assert (zero.disk, list(zero.extents)) == (disk, chosen)


def test_a_write_holds_its_bytes() -> None:
    write = said(Kind.WRITE, wire.table(3, [(0, 2), (8, 3)]) + b"aabbb")
    assert isinstance(write, wire.Write)
    assert (write.disk, write.extents, bytes(write.payload)) == (3, ((0, 2), (8, 3)), b"aabbb")


def test_an_attachment_comes_in_parts() -> None:
    attach = said(Kind.ATTACH, wire.part("firmware-state", last=True) + b"xyz")
    assert isinstance(attach, wire.Attach)
    assert (attach.name, attach.last, bytes(attach.part)) == ("firmware-state", True, b"xyz")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        wire.table(0, []),
        wire.table(0, [(0, 4)]) + b"aaa",
        wire.table(0, [(0, 4)]) + b"aaaaa",
        wire.table(0, [(4, 4), (0, 4)]) + b"a" * 8,
        wire.table(0, [(0, 4), (3, 4)]) + b"a" * 8,
        wire.table(0, [(0, 0)]),
        wire.table(0, [((1 << 64) - 1, 4)]) + b"a" * 4,
        wire.table(0, [(0, 4)])[:-1],
        struct.pack(">HH", 0, wire.MOST_EXTENTS + 1) + bytes(12 * (wire.MOST_EXTENTS + 1)),
    ],
)
def test_writes_that_lie_are_refused(body: bytes) -> None:
    with pytest.raises(FrameRefused):
        wire.parse(Kind.WRITE, memoryview(body))


@pytest.mark.parametrize(
    "body", [b"", b"\x05\0ab", b"\0\0", b"\x02\0..", b"\x01\0/", b"\x01\x02a", b"\x21\0" + b"a" * 33]
)
def test_attachments_without_a_plain_name_are_refused(body: bytes) -> None:
    with pytest.raises(FrameRefused):
        wire.parse(Kind.ATTACH, memoryview(body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"cycle":-1}',
        b'{"cycle":9223372036854775808}',
        b'{"cycle":1,"more":1}',
        b'{"cycle":1e999}',
        b'{"cycle":"\xff"}',
    ],
)
def test_messages_that_cannot_be_read_are_refused(body: bytes) -> None:
    with pytest.raises(FrameRefused):
        wire.parse(Kind.COMMITTED, memoryview(body))


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", "a" * 64, "a\n"], ids=["up", "slash", "empty", "long", "newline"]
)
def test_names_that_a_peer_sends_are_names_and_no_paths(name: str) -> None:
    with pytest.raises(ValidationError):
        wire.Open(replication=ID, vm=ID, name=name, disks=())
    with pytest.raises(ValidationError):
        DiskShape(id=name, size=1)


@pytest.mark.parametrize(
    "head",
    [
        struct.pack(">BBHII", 99, 0, 0, 0, 0),
        struct.pack(">BBHII", Kind.WRITE, 2, 0, 0, 0),
        struct.pack(">BBHII", Kind.WRITE, 0, 1, 0, 0),
        struct.pack(">BBHII", Kind.WRITE, 0, 0, 1, 2),
        struct.pack(">BBHII", Kind.WRITE, 1, 0, 1, wire.LARGEST_BODY + 1),
        struct.pack(">BBHII", Kind.WRITE, 0, 0, *2 * (wire.LARGEST_BODY + 1,)),
        struct.pack(">BBHII", Kind.PING, 0, 0, *2 * (wire.LARGEST_TEXT + 1,)),
        struct.pack(">BBHII", Kind.PING, 1, 0, 8, 8),
    ],
)
def test_headers_out_of_bounds_are_refused(head: bytes) -> None:
    with pytest.raises(FrameRefused):
        wire.parse_header(head)


@given(st.binary(min_size=wire.HEADER_BYTES, max_size=wire.HEADER_BYTES))
def test_any_header_is_read_within_bounds_or_refused(data: bytes) -> None:
    try:
        head = wire.parse_header(data)
    except FrameRefused:
        return
    assert max(head.length, head.size) <= wire.LARGEST_BODY


@given(st.sampled_from(list(Kind)), st.binary(max_size=256))
def test_any_body_is_read_or_refused(kind: Kind, data: bytes) -> None:
    with contextlib.suppress(FrameRefused):
        wire.parse(kind, memoryview(data))


@given(st.randoms(use_true_random=False), st.sampled_from(MESSAGES))
def test_a_message_with_a_broken_byte_is_read_or_refused(
    chance: random.Random, message: wire.Message
) -> None:
    body = bytearray(wire.body(message))
    body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    with contextlib.suppress(FrameRefused):
        wire.parse(message.kind, memoryview(body))


def test_the_highest_version_that_both_know_is_spoken() -> None:
    ours = Hello(host="a", lowest=2, highest=5)
    assert wire.agreed(ours, Hello(host="b", lowest=1, highest=3)) == 3
    assert wire.agreed(ours, Hello(host="b", lowest=5, highest=9)) == 5
    for theirs in (
        Hello(host="b", lowest=1, highest=1),
        Hello(host="b", lowest=6, highest=9),
        Hello(host="b", protocol="other", lowest=1, highest=5),
    ):
        with pytest.raises(NoCommonVersion):
            wire.agreed(ours, theirs)


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 3 << 20)), max_size=20).map(ascending))
def test_batches_fit_into_writes_and_leave_nothing_out(chosen: list[tuple[int, int]]) -> None:
    found = list(wire.batches(chosen))
    for batch in found:
        assert len(batch) <= wire.MOST_EXTENTS
        assert sum(length for _, length in batch) <= wire.LARGEST_PAYLOAD
        wire.parse(Kind.ZERO, memoryview(wire.table(0, batch)))

    def joined(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
        whole: list[tuple[int, int]] = []
        for offset, length in extents:
            if whole and sum(whole[-1]) == offset:
                whole[-1] = (whole[-1][0], whole[-1][1] + length)
            else:
                whole.append((offset, length))
        return whole

    assert joined([extent for batch in found for extent in batch]) == joined(chosen)


def test_many_small_extents_are_cut_by_their_number() -> None:
    chosen = [(index * 8192, 4096) for index in range(2 * wire.MOST_EXTENTS + 1)]
    assert [len(batch) for batch in wire.batches(chosen)] == [256] * 4 + [1]


def test_a_begin_needs_a_cycle_that_counts() -> None:
    with pytest.raises(ValidationError):
        Begin(cycle=0, base=0, taken_us=0, disks=())
