"""Grains of a VMDK stream as its bytes arrive: whole, in any pieces, and damaged in any way."""

import random
import struct
import sys
from pathlib import Path

import pytest

from holdfast.spec.errors import HoldfastError
from holdfast.storage.formats.refusals import ImageDamaged
from holdfast.storage.formats.vmdk_push import GrainPush

sys.path.append(str(Path(__file__).parents[2] / "guests"))

from vsphere_vms import stream_optimized

GRAIN = 64 * 1024


def content() -> bytes:
    """Five grains and a part of one, the second and fourth of zeros."""
    noise = random.Random(1).randbytes
    return noise(GRAIN) + bytes(GRAIN) + b"text" * (GRAIN // 4) + bytes(GRAIN) + noise(GRAIN) + noise(1536)


def read(stream: bytes, size: int, step: int) -> tuple[bytes, bool]:
    push, disk = GrainPush(size), bytearray(size)
    for at in range(0, len(stream), step):
        for place, data in push.feed(stream[at : at + step]):
            disk[place : place + len(data)] = data
    return bytes(disk), push.ended


@pytest.mark.parametrize("step", [1, 511, 4096, 1 << 20])
def test_a_stream_in_pieces_of_any_size_is_read(step: int) -> None:
    disk = content()
    assert read(stream_optimized(disk), len(disk), step) == (disk, True)


def test_a_stream_that_was_cut_off_has_not_ended() -> None:
    disk = content()
    stream = stream_optimized(disk)
    assert not read(stream[:-512], len(disk), 4096)[1]
    assert not read(stream[: len(stream) // 2], len(disk), 4096)[1]


def test_another_size_than_the_disks_is_refused() -> None:
    disk = content()
    with pytest.raises(ImageDamaged):
        read(stream_optimized(disk), len(disk) + 1024 * 1024, 4096)


def test_grains_that_go_back_are_refused() -> None:
    disk = content()
    stream = bytearray(stream_optimized(disk))
    first = 128 * 512
    size = int.from_bytes(stream[first + 8 : first + 12], "little")
    second = first + -(-(12 + size) // 512) * 512
    stream[second : second + 8] = bytes(8)
    with pytest.raises(ImageDamaged):
        read(bytes(stream), len(disk), 4096)


def test_a_stream_that_does_not_end_is_refused() -> None:
    disk = content()
    push = GrainPush(len(disk))
    push.feed(stream_optimized(disk)[: 128 * 512])
    table = struct.pack("<QII", 2047, 0, 1).ljust(512, b"\0") + bytes(2047 * 512)
    with pytest.raises(ImageDamaged):
        for _ in range(200):
            push.feed(table)


def test_damage_anywhere_is_refused_or_read_within_the_disk() -> None:
    disk, chance = content(), random.Random(2)
    stream = stream_optimized(disk)
    for _ in range(1500):
        damaged = bytearray(stream)
        for _ in range(chance.randint(1, 4)):
            # Headers and markers more often than the middle of grains.
            at = chance.choice([chance.randrange(600), chance.randrange(len(damaged))])
            damaged[at] = chance.randrange(256)
        push = GrainPush(len(disk))
        try:
            for place, data in push.feed(bytes(damaged[: chance.randrange(len(damaged))])):
                assert place >= 0 and place + len(data) <= len(disk)
        except HoldfastError as refused:
            assert refused.id in ("image-damaged", "image-feature-unknown")
