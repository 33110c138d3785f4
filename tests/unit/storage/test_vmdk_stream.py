"""Whole streamOptimized VMDKs are read wherever they lie, each lie is refused, and fuzz finds nothing."""

import random
import struct
import time
import zlib

import pytest
from vmdk_made import GRAINS, SECTOR, SIZE, content, markers, mutated, stream, tables, taken

from holdfast.spec.errors import HoldfastError
from holdfast.storage.formats import refusals
from holdfast.storage.formats.vmdk_writer import GRAIN

MOST_SECONDS = 5.0


def test_a_stream_is_read_wherever_it_lies() -> None:
    data = stream()
    expected = {index * GRAIN: content(index)[: SIZE - index * GRAIN] for index in GRAINS}
    assert taken(data) == expected
    assert taken(data, b"tar" * 1000, b"more" * 1000) == expected


def test_an_empty_disk_has_no_grain() -> None:
    assert taken(stream(())) == {}


def test_what_a_table_lists_beyond_the_disk_says_nothing() -> None:
    data = stream()
    assert taken(bytes(patched(data, tables(data)[1120] + 4, "<I", 5))) == taken(bytes(stream()))


def patched(data: bytearray, at: int, form: str, value: int) -> bytearray:
    struct.pack_into(form, data, at, value)
    return data


def in_both(data: bytearray, at: int, form: str, value: int) -> bytearray:
    """In the header and in the footer."""
    return patched(patched(data, at, form, value), len(data) - 2 * SECTOR + at, form, value)


def with_text(old: bytes, new: bytes) -> bytearray:
    data = stream()
    at = data.index(old)
    data[at : at + len(old)] = b""
    data[at:at] = new
    rest = len(new) - len(old)
    end = 21 * SECTOR
    if rest > 0:
        del data[end : end + rest]
    else:
        data[end + rest : end + rest] = bytes(-rest)
    return data


def swapped(data: bytearray) -> bytearray:
    places = tables(data)
    one, other = places[1], places[7]
    data[one : one + 4], data[other : other + 4] = data[other : other + 4], data[one : one + 4]
    return data


def overlapping(data: bytearray) -> bytearray:
    """The marker of grain 7 says that it is grain 1, and the table lists the place for both."""
    places, marks = tables(data), markers(data)
    struct.pack_into("<Q", data, marks[7], 128)
    struct.pack_into("<I", data, places[7], 0)
    return data


def listed_twice(data: bytearray) -> bytearray:
    places = tables(data)
    data[places[8] : places[8] + 4] = data[places[7] : places[7] + 4]
    return data


def shared_table(data: bytearray) -> bytearray:
    at = tables(data)[-1]
    data[at + 4 : at + 8] = data[at : at + 4]
    return data


def shifted_marker(data: bytearray) -> bytearray:
    """Half a grain further, so that it would overlap its neighbour."""
    return patched(data, markers(data)[7], "<Q", 7 * 128 + 64)


def bomb() -> bytearray:
    return stream(packed={7: zlib.compress(bytes(60 * 1024 * 1024), 9)[: 2 * GRAIN]})


def short() -> bytearray:
    return stream(packed={7: zlib.compress(content(7)[:-1])})


def wrong_checksum() -> bytearray:
    return stream(packed={7: zlib.compress(content(7))[:-1] + b"\x55"})


MARKER, ENTRY, DIRECTORY = markers(stream())[7], tables(stream())[7], tables(stream())[-1]
DAMAGED = refusals.ImageDamaged
TRUNCATED = refusals.ImageTruncated
BAD = {
    "entries of a table swapped": (swapped(stream()), DAMAGED),
    "two grains for one place": (overlapping(stream()), DAMAGED),
    "one grain for two places": (listed_twice(stream()), DAMAGED),
    "one table for two stretches": (shared_table(stream()), DAMAGED),
    "a grain across two": (shifted_marker(stream()), DAMAGED),
    "a grain beyond the disk": (patched(stream(), MARKER, "<Q", 1 << 40), DAMAGED),
    "a grain that is not listed": (patched(stream(), ENTRY, "<I", 0), DAMAGED),
    "a table beyond the file": (patched(stream(), DIRECTORY, "<I", 1 << 30), TRUNCATED),
    "a marker that skips for ever": (
        patched(patched(stream(), MARKER + 8, "<I", 0), MARKER, "<Q", 1 << 60),
        TRUNCATED,
    ),
    "a grain of 4 GiB": (patched(stream(), MARKER + 8, "<I", 0xFFFFFFFF), DAMAGED),
    "the end in the middle": (
        patched(patched(stream(), MARKER + 8, "<Q", 0), MARKER, "<Q", 0),
        DAMAGED,
    ),
    "a bomb of 1,000 to 1": (bomb(), DAMAGED),
    "a grain that is too short": (short(), DAMAGED),
    "a grain whose checksum is wrong": (wrong_checksum(), DAMAGED),
    "cut off": (stream()[:-3000], TRUNCATED),
    "cut off in the header": (stream()[:40], TRUNCATED),
    "nearly 64 TiB declared": (in_both(stream(), 12, "<Q", (60 << 40) // SECTOR), TRUNCATED),
    "more than 64 TiB declared": (in_both(stream(), 12, "<Q", 1 << 38), refusals.ImageSizeAbsurd),
    "a capacity that overflows": (in_both(stream(), 12, "<Q", 1 << 63), refusals.ImageSizeAbsurd),
    "header and footer differ": (patched(stream(), 12, "<Q", SIZE // SECTOR - 8), DAMAGED),
    "grains of 32 MiB": (in_both(stream(), 20, "<Q", 1 << 16), refusals.ImageFeatureUnknown),
    "grains of no power of two": (in_both(stream(), 20, "<Q", 100), DAMAGED),
    "not compressed": (in_both(stream(()), 8, "<I", 1), refusals.ImageFeatureUnknown),
    "an extent elsewhere": (
        with_text(b'SPARSE "disk.vmdk"', b'FLAT "/etc/shadow" 0'),
        refusals.ImageNamesOtherFiles,
    ),
    "a parent elsewhere": (
        with_text(b"parentCID=ffffffff", b'parentCID=12345678\nparentFileNameHint="/etc/shadow"'),
        refusals.ImageHasBackingFile,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_each_lie_is_refused(case: str) -> None:
    data, refusal = BAD[case]
    with pytest.raises(refusal) as caught:
        taken(bytes(data))
    assert caught.value.cure
    assert "root:" not in caught.value.message


def fuzz(seed: int, count: int) -> None:
    source, data, whole = random.Random(seed), bytes(stream()), taken(bytes(stream()))
    accepted = 0
    for number in range(count):
        changed = mutated(data, source)
        began = time.monotonic()
        try:
            found = taken(changed)
        except HoldfastError as error:
            assert type(error).__module__ == refusals.__name__, (seed, number, error)
        else:
            # A change that nothing depends on; whatever was taken is what a grain's checksum vouches for.
            accepted += 1
            assert set(found.values()) <= {*whole.values()} | {each[:4096] for each in whole.values()}
        assert time.monotonic() - began < MOST_SECONDS, (seed, number)
    assert accepted < count


def test_mutations_are_refused_or_harmless() -> None:
    fuzz(1, 2_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2, 16))
def test_many_mutations_are_refused_or_harmless(seed: int) -> None:
    fuzz(seed, 7_000)
