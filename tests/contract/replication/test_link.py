"""Links over real TLS: both sides pinned, frames whole or the link lost, nobody held up for ever."""

import contextlib
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from holdfast.replication import identity, wire
from holdfast.replication.identity import Identity
from holdfast.replication.link import (
    Address,
    Door,
    LinkLost,
    NotLetIn,
    NotThatPeer,
    TlsLink,
    connect,
    greet,
    hear,
    refuse,
    tell,
)
from holdfast.replication.wire import FrameRefused, Kind, PeerRefused, Ping, Pong
from holdfast.replication.zstandard import CompressionParameter, ZstdCompressor
from holdfast.spec.errors import Insufficient

T = TypeVar("T")


class PeerFull(Insufficient):
    id = "replica-test-full"


class Pair:
    """A door with one pinned source, and threads for the receiver's side."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.source, self.receiver = (self.make(folder / name) for name in ("source", "receiver"))
        self.pinned = (self.source.certificate.read_text(),)
        self.door = Door(Address(host=host, port=0), self.receiver, lambda: self.pinned, silence=1.0)
        self.address = Address(host=host, port=self.door.port)
        self.threads = ThreadPoolExecutor(4)

    @staticmethod
    def make(folder: Path) -> Identity:
        folder.mkdir()
        return identity.load_or_make(folder)

    def receive(self, work: Callable[[TlsLink], T]) -> "Future[T]":
        def served() -> T:
            link = self.door.admit(self.door.accept())
            try:
                return work(link)
            finally:
                link.close()

        return self.threads.submit(served)

    def connect(self) -> TlsLink:
        return connect(self.address, self.source, self.receiver.fingerprint, silence=1.0)

    def close(self) -> None:
        self.door.close()
        self.threads.shutdown()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def test_both_sides_know_each_other_and_speak(pair: Pair) -> None:
    def receiver(link: TlsLink) -> tuple[str | None, int]:
        version = greet(link, "south")
        tell(link, Pong(number=hear(link, Ping).number))
        return link.peer, version

    served = pair.receive(receiver)
    link = pair.connect()
    assert greet(link, "north") == wire.HIGHEST
    tell(link, Ping(number=3))
    assert hear(link, Pong).number == 3
    assert served.result() == (pair.source.fingerprint, wire.HIGHEST)
    link.close()


def test_ipv6_and_names_are_addresses_too(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "::1")
    served = pair.receive(lambda link: link.peer)
    pair.connect().close()
    assert served.result() == pair.source.fingerprint
    pair.close()


def test_large_frames_arrive_whole_compressed_or_not(pair: Pair) -> None:
    extents = [(index * 8192, 4096) for index in range(256)]
    table, payload = wire.table(1, extents), os.urandom(4096) * 256
    compressor = ZstdCompressor(options={CompressionParameter.compression_level: 1})
    packed = compressor.compress(table) + compressor.compress(payload, compressor.FLUSH_FRAME)

    def receiver(link: TlsLink) -> list[bytes]:
        found = []
        for _ in range(2):
            write = link.receive()
            assert isinstance(write, wire.Write)
            assert (write.disk, list(write.extents)) == (1, extents)
            found.append(bytes(write.payload))
        return found

    served = pair.receive(receiver)
    link = pair.connect()
    link.send(Kind.WRITE, table, payload)
    before = link.sent
    link.send(Kind.WRITE, packed, size=len(table) + len(payload))
    assert link.sent - before < len(payload) // 10
    assert served.result() == [payload, payload]
    link.close()


def test_a_receiver_with_another_certificate_is_told_nothing(pair: Pair, tmp_path: Path) -> None:
    served = pair.receive(lambda link: link.receive())
    other = Pair.make(tmp_path / "other")
    with pytest.raises(NotThatPeer) as caught:
        connect(pair.address, pair.source, other.fingerprint)
    assert caught.value.value == pair.receiver.fingerprint
    assert isinstance(served.exception(), LinkLost)


def test_a_source_that_is_not_pinned_is_not_let_in(pair: Pair, tmp_path: Path) -> None:
    served = pair.receive(lambda link: link.receive())
    link = connect(pair.address, Pair.make(tmp_path / "stranger"), pair.receiver.fingerprint)
    with pytest.raises(LinkLost):
        link.receive()
    assert isinstance(served.exception(), LinkLost)
    link.close()


def test_a_source_no_longer_pinned_is_not_let_in(pair: Pair) -> None:
    pair.pinned = ()
    served = pair.receive(lambda link: link.receive())
    link = pair.connect()
    with pytest.raises(LinkLost):
        link.receive()
    assert isinstance(served.exception(), LinkLost)
    link.close()


def test_a_source_without_a_certificate_is_nobody(pair: Pair) -> None:
    served = pair.receive(lambda link: link.peer)
    connect(pair.address, None, pair.receiver.fingerprint).close()
    assert served.result() is None


def test_tls_1_2_is_refused(pair: Pair) -> None:
    served = pair.receive(lambda link: link.peer)
    context = identity.client_context(pair.source)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", pair.door.port)) as plain,
        pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|protocol version"),
    ):
        context.wrap_socket(plain)
    assert isinstance(served.exception(), LinkLost)


def raw(pair: Pair, said: bytes) -> None:
    """Say these bytes over TLS, and go."""
    context = identity.client_context(pair.source)
    with (
        socket.create_connection(("127.0.0.1", pair.door.port)) as plain,
        contextlib.suppress(OSError),
        context.wrap_socket(plain) as link,
    ):
        link.sendall(said)
        link.unwrap()


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (wire.header(Kind.WRITE, 100) + b"a" * 50, LinkLost),
        (wire.header(Kind.WRITE, 100)[:5], LinkLost),
        (b"", LinkLost),
        (struct.pack(">BBHII", Kind.WRITE, 0, 0, *2 * (wire.LARGEST_BODY + 1,)), FrameRefused),
        (struct.pack(">BBHII", Kind.WRITE, 1, 0, 20, 1 << 20) + b"not zstd" * 3, FrameRefused),
        (b"GET / HTTP/1.1\r\n\r\n", FrameRefused),
    ],
    ids=["truncated", "half-a-header", "nothing", "oversize", "not-zstd", "http"],
)
def test_frames_that_are_none_are_refused(pair: Pair, said: bytes, refused: type[Exception]) -> None:
    served = pair.receive(lambda link: link.receive())
    raw(pair, said)
    assert isinstance(served.exception(), refused), served.exception()


@pytest.mark.parametrize("claimed", [1 << 19, (1 << 20) - 1])
def test_a_frame_that_unpacks_to_more_than_it_said_is_refused(pair: Pair, claimed: int) -> None:
    compressor = ZstdCompressor()
    packed = compressor.compress(bytes(1 << 20), compressor.FLUSH_FRAME)
    served = pair.receive(lambda link: link.receive())
    link = pair.connect()
    link.send(Kind.WRITE, packed, size=claimed)
    assert isinstance(served.exception(), FrameRefused)
    link.close()


@pytest.mark.parametrize(("window", "read"), [(wire.WINDOW_LOG, True), (27, False)])
def test_a_window_that_would_take_much_memory_is_refused(pair: Pair, window: int, read: bool) -> None:
    compressor = ZstdCompressor(options={CompressionParameter.window_log: window})
    # Streamed, so that the window is not cut to what there is.
    content = wire.table(0, [(0, 3000)]) + b"x" * 3000
    packed = b"".join(compressor.compress(content[at : at + 1000]) for at in range(0, len(content), 1000))
    packed += compressor.flush()
    served = pair.receive(lambda link: link.receive())
    link = pair.connect()
    link.send(Kind.WRITE, packed, size=len(content))
    assert isinstance(served.exception(), FrameRefused) is not read
    assert read or "cannot be decompressed" in str(served.exception())
    link.close()


def test_a_side_that_says_nothing_more_is_given_up(pair: Pair) -> None:
    done = threading.Event()

    def receiver(link: TlsLink) -> float:
        begun = time.monotonic()
        with pytest.raises(LinkLost):
            link.receive()
        done.set()
        return time.monotonic() - begun

    served = pair.receive(receiver)
    context = identity.client_context(pair.source)
    with (
        socket.create_connection(("127.0.0.1", pair.door.port)) as plain,
        contextlib.suppress(OSError),
        context.wrap_socket(plain) as link,
    ):
        for byte in wire.header(Kind.WRITE, 1000) + bytes(100):  # now and then a byte
            link.sendall(bytes([byte]))
            if done.wait(0.1):
                break
    assert 0.9 < served.result() < 3


def test_a_side_that_takes_nothing_more_is_given_up(pair: Pair) -> None:
    done = threading.Event()
    served = pair.receive(lambda link: done.wait(20))
    link = pair.connect()
    payload = wire.table(0, [(0, 1 << 20)]) + bytes(1 << 20)
    with pytest.raises(LinkLost):
        for _ in range(64):
            link.send(Kind.WRITE, payload)
    done.set()
    assert served.result()
    link.close()


def test_a_refusal_arrives_although_much_was_on_its_way(pair: Pair) -> None:
    error = PeerFull("the disk is full", value=0, cure="Make room.")
    served = pair.receive(lambda link: refuse(link, error))
    link = pair.connect()
    payload = wire.table(0, [(0, 1 << 20)]) + bytes(1 << 20)
    while not link.waiting():
        link.send(Kind.WRITE, payload)
    with pytest.raises(PeerRefused) as caught:
        hear(link, wire.Committed)
    assert (caught.value.value, caught.value.cure) == ("replica-test-full", "Make room.")
    link.close()
    served.result()


def test_what_may_not_come_now_is_refused(pair: Pair) -> None:
    served = pair.receive(lambda link: hear(link, wire.Open))
    link = pair.connect()
    tell(link, Ping(number=1))
    assert isinstance(served.exception(), FrameRefused)
    link.close()


def test_nobody_listens(pair: Pair) -> None:
    pair.door.close()
    with pytest.raises(LinkLost):
        pair.connect()


def test_an_identity_is_made_once_and_its_key_is_ours_alone(tmp_path: Path) -> None:
    made = identity.load_or_make(tmp_path)
    assert identity.load_or_make(tmp_path) == made
    assert made.key.stat().st_mode & 0o777 == 0o600
    pem = made.certificate.read_text()
    assert identity.normal(f"# a note\n{pem}\n") == pem
    with pytest.raises(identity.BadPeerCertificate):
        identity.normal("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_why_a_host_cannot_be_reached_is_told_apart(pair: Pair) -> None:
    def dial(host: str, port: int) -> str:
        with pytest.raises(LinkLost) as caught:
            place = Address(host=host, port=port)
            connect(place, pair.source, pair.receiver.fingerprint, handshake=0.3)
        assert caught.value.cure
        return caught.value.id

    assert dial("replica..invalid", 8444) == "replica-host-unknown"
    assert dial("x" * 300, 8444) == "replica-host-unknown"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert dial("127.0.0.1", free.getsockname()[1]) == "replica-nobody-listens"
    with contextlib.ExitStack() as opened:
        full = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # more than it queues: nothing answers any more
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        assert dial("127.0.0.1", full.getsockname()[1]) == "replica-host-unreachable"


@pytest.mark.skipif(os.geteuid() != 0, reason="has a network of its own")
def test_a_host_to_which_no_way_leads_is_unreachable(pair: Pair) -> None:
    lines = [
        "from holdfast.replication.link import *",
        "try: connect(Address(host='192.0.2.1', port=8444), None, '')",
        "except LinkLost as error: print(error.id)",
    ]
    argv = ["unshare", "--net", sys.executable, "-c", "\n".join(lines)]
    assert (
        subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        == "replica-host-unreachable\n"
    )


def test_a_source_that_is_not_paired_any_more_is_told_so(pair: Pair) -> None:
    pair.pinned = ()
    for _ in range(10):
        served = pair.receive(lambda link: None)
        link = pair.connect()
        with pytest.raises(NotLetIn):
            greet(link, "north")
        link.close()
        assert isinstance(served.exception(), LinkLost)
