"""Hyper-V configurations whose tables point at each other: bounded by the file's own size."""

import struct
import time
import tracemalloc

import pytest
from vmcx_made import NODE, ROOT, STRING, UINT, header, key, keys, objects, small_vmcx, vmcx

from holdfast.storage.appliances import refusals
from holdfast.storage.appliances.vmcx import LARGEST, read_vmcx


def test_an_honest_one_is_read() -> None:
    found = read_vmcx(small_vmcx(), "x.vmcx")
    assert found.values == {"configuration/name": "web", "configuration/count": 4} and not found.partly


def bounded(data: bytes, refusal: type[Exception] | None) -> None:
    """In a moment, and in no more memory than some times the file."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        if refusal:
            with pytest.raises(refusal):
                read_vmcx(data, "x.vmcx")
        else:
            read_vmcx(data, "x.vmcx")
        assert time.monotonic() - began < 15
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + (32 << 20)
    finally:
        tracemalloc.stop()


def test_tables_that_lie_over_each_other_are_not_kept_over_and_over() -> None:
    size, count = 4 << 20, 512
    places = [65536 + number * 64 for number in range(count)]
    parts = []
    for number, at in enumerate(places):
        length = size - at - 10
        entry = struct.pack("<BBIHIIIB", STRING, 0, length, *ROOT, 0, 0, 1)
        parts.append((at, keys(number, entry)))
    table = objects(*((2, at, size - at) for at in places))
    bounded(vmcx((8192, table), *parts, size=size), refusals.DescriptorTooLarge)


def test_a_table_named_a_thousand_times_is_read_once() -> None:
    table = keys(1, *(key(UINT, b"%d" % number, bytes(8)) for number in range(8_000)))
    named = objects(*((2, 65536, len(table)) for _ in range(1000)))
    data = vmcx((8192, named), (65536, table), size=2 << 20)
    bounded(data, None)
    assert len(read_vmcx(data, "x.vmcx").values) == 8_000


def test_tables_of_objects_in_a_circle_end() -> None:
    bounded(
        vmcx((8192, objects((1, 8192, 0), (1, 16384, 0))), (16384, objects((1, 8192, 0)))),
        refusals.DescriptorDamaged,
    )


def test_objects_without_end_are_refused() -> None:
    parts = [(8192, struct.pack("<II", 0, 0xFFFFFFFF)), (8200, b"\0" * 17)]
    bounded(vmcx(*parts, size=LARGEST), refusals.DescriptorTooLarge)


def test_long_paths_take_little_room() -> None:
    entries, parent = [], ROOT
    at = 10
    for _ in range(16):
        entries.append(key(NODE, b"n" * 250, b"", parent))
        parent, at = (1, at), at + len(entries[-1])
    entries += [key(UINT, b"n" * 200 + b"%d" % number, bytes(8), parent) for number in range(5_000)]
    table = keys(1, *entries)
    bounded(vmcx((8192, objects((2, 65536, len(table)))), (65536, table), size=8 << 20), None)


@pytest.mark.parametrize("data", [b"", bytes(64), bytes(8192), header(), header() + bytes(8200)])
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises((refusals.DescriptorDamaged, refusals.DescriptorTooLarge)):
        read_vmcx(data, "x.vmcx")
    with pytest.raises(refusals.DescriptorTooLarge):
        read_vmcx(bytes(LARGEST + 1), "x.vmcx")
