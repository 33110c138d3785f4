"""The level of compression follows the link and the content."""

import os

import pytest

from holdfast.replication.link import Buffer
from holdfast.replication.packing import Packing
from holdfast.replication.zstandard import ZstdDecompressor

TEXT = b"".join(b"%d bottles of beer on the wall, " % number for number in range(4096))


class Wire:
    """A link of so many bytes a second; packing takes the time that it takes at each level."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.now = 0.0
        self.sent = 0
        self.plain = 0

    def send(self, parts: tuple[Buffer, ...], size: int | None) -> None:
        length = sum(len(part) for part in parts)
        self.sent += length
        self.now += length / self.rate
        if size is None:
            self.plain += 1
        else:
            self.now += length / 20e6  # what packing took, of what it made
            assert len(ZstdDecompressor().decompress(b"".join(parts))) == size


@pytest.mark.parametrize(
    ("content", "rate", "packed"),
    [(TEXT, 1e6, True), (TEXT, 1e11, False), (os.urandom(1 << 17), 1e6, False)],
    ids=["slow-link", "fast-link", "nothing-to-gain"],
)
def test_what_pays_is_chosen(content: bytes, rate: float, packed: bool) -> None:
    wire = Wire(rate)
    packing = Packing(lambda: wire.now)
    for _ in range(100):
        packing.send((b"head", content), wire.send)
    mostly = wire.plain < 10 if packed else wire.plain > 80
    assert mostly, wire.plain
    assert (wire.sent < 100 * len(content) / 4) is packed


def test_a_link_that_becomes_slow_is_noticed() -> None:
    wire = Wire(1e11)
    packing = Packing(lambda: wire.now)
    for _ in range(50):
        packing.send((TEXT,), wire.send)
    assert packing.level is None
    wire.rate = 1e5
    for _ in range(100):
        packing.send((TEXT,), wire.send)
    assert packing.level is not None


def test_a_link_that_stood_still_once_is_no_reason_to_pack_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    wire, noise, levels = Wire(1e9), os.urandom(1 << 17), list[int]()

    def packed(parts: tuple[Buffer, ...], level: int) -> bytes:
        levels.append(level)
        wire.now += len(noise) / 500e6
        return b"".join(parts) + b"a little more"

    monkeypatch.setattr("holdfast.replication.packing._packed", packed)
    packing = Packing(lambda: wire.now)
    for number in range(600):
        wire.rate = 1e5 if number == 100 else 1e9
        packing.send((noise,), wire.send)
        if number == 299:
            levels.clear()
    assert len(levels) <= 3


def test_small_bodies_are_sent_as_they_are() -> None:
    wire = Wire(1e3)
    Packing(lambda: wire.now).send((b"a" * 1000,), wire.send)
    assert (wire.sent, wire.plain) == (1000, 1)
