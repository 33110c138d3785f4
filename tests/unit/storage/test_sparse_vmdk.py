"""VMDKs with uncompressed grains (monolithicSparse) with one lie in each; slow descriptors."""

import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from vmdk_made import (
    EXTENT_DATA,
    EXTENT_DIRECTORY,
    EXTENT_GRAIN,
    EXTENT_SIZE,
    EXTENT_TABLES,
    EXTENT_TEXT,
    SECTOR,
    opened,
    sparse_extent,
)

from holdfast.spec.image import ImageKind
from holdfast.storage.formats import refusals
from holdfast.storage.formats.reading import Inspection
from holdfast.storage.formats.vmdk import HEADER
from holdfast.storage.inspect import inspect_reader


def inspected(data: bytes) -> Inspection:
    with opened(data) as reader:
        return inspect_reader(reader, ImageKind.DISK)


def test_an_honest_one_is_taken() -> None:
    found = inspected(
        sparse_extent(
            {0: EXTENT_DATA, 1: 1, 7: EXTENT_DATA + 2 * EXTENT_GRAIN, 599: EXTENT_DATA + EXTENT_GRAIN}
        )
    )
    assert (found.format, found.virtual_size) == ("vmdk", EXTENT_SIZE)


BAD: dict[str, tuple[bytes, type[Exception]]] = {
    "one grain for two places": (sparse_extent({0: EXTENT_DATA, 1: EXTENT_DATA}), refusals.ImageDamaged),
    "one grain for two places of two tables": (
        sparse_extent({0: EXTENT_DATA, 599: EXTENT_DATA}),
        refusals.ImageDamaged,
    ),
    "a grain that begins in another": (
        sparse_extent({0: EXTENT_DATA, 1: EXTENT_DATA + EXTENT_GRAIN - 1}),
        refusals.ImageDamaged,
    ),
    "a grain that ends in another": (
        sparse_extent({0: EXTENT_DATA + 3, 1: EXTENT_DATA}),
        refusals.ImageDamaged,
    ),
    "a table for two stretches": (
        sparse_extent({0: EXTENT_DATA}, (EXTENT_TABLES, EXTENT_TABLES)),
        refusals.ImageDamaged,
    ),
    "a table that begins in another": (
        sparse_extent({0: EXTENT_DATA}, (EXTENT_TABLES, EXTENT_TABLES + 3)),
        refusals.ImageDamaged,
    ),
    "a grain beyond the file": (sparse_extent({0: 1 << 30}), refusals.ImageTruncated),
    "a table beyond the file": (sparse_extent({}, (EXTENT_TABLES, 1 << 30)), refusals.ImageTruncated),
    "an extent elsewhere": (
        sparse_extent({}, text=EXTENT_TEXT.replace(b'SPARSE "disk.vmdk"', b'FLAT "/etc/shadow" 0')),
        refusals.ImageNamesOtherFiles,
    ),
    "an extent elsewhere, after odd spaces": (
        sparse_extent({}, text=EXTENT_TEXT.replace(b"RW 4800 SPARSE", b"\r\x0b\x0c RW\t4800\tFLAT")),
        refusals.ImageNamesOtherFiles,
    ),
    "a second extent": (
        sparse_extent({}, text=EXTENT_TEXT + b'RW 1 FLAT "/etc/shadow" 0\n'),
        refusals.ImageNamesOtherFiles,
    ),
    "a device as extent": (
        sparse_extent({}, text=EXTENT_TEXT.replace(b"SPARSE", b"VMFSRDM")),
        refusals.ImageNamesOtherFiles,
    ),
    "a descriptor alone": (
        EXTENT_TEXT.replace(b'SPARSE "disk.vmdk"', b'FLAT "/etc/shadow" 0'),
        refusals.ImageNamesOtherFiles,
    ),
    "a parent elsewhere": (
        sparse_extent(
            {}, text=EXTENT_TEXT.replace(b"CID=ffffffff", b'CID=1\nparentFileNameHint="/etc/shadow"')
        ),
        refusals.ImageHasBackingFile,
    ),
    "no capacity, so that the text counts": (
        bytes(bytearray(sparse_extent({}))[:12]) + bytes(8) + sparse_extent({})[20:],
        refusals.ImageNamesOtherFiles,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_each_lie_is_refused(case: str) -> None:
    data, refusal = BAD[case]
    with pytest.raises(refusal) as caught:
        inspected(data)
    assert "root:" not in str(caught.value)


SLOW: dict[str, Callable[[int], bytes]] = {
    "empty lines": lambda size: b"\n" * size,
    "spaces": lambda size: b" " * size,
    "lines of spaces": lambda size: b" \n" * (size // 2),
    "extents without a name": lambda size: b'RW 1 A "\n' * (size // 9),
    "numbers": lambda size: b"RW " + b"1" * size,
    "parents": lambda size: b"parentFileNameHint=\n" * (size // 20),
}


@pytest.mark.parametrize("case", SLOW)
def test_a_descriptor_is_read_in_time_that_grows_with_its_length_only(case: str) -> None:
    text = b"# Disk DescriptorFile\n" + SLOW[case](62_000)
    began = time.monotonic()
    with pytest.raises(refusals.ImageNamesOtherFiles):
        inspected(text)
    inside = bytearray(sparse_extent({}))
    at = len(inside) // SECTOR
    HEADER.pack_into(
        inside,
        0,
        b"KDMV",
        1,
        3,
        EXTENT_SIZE // SECTOR,
        EXTENT_GRAIN,
        at,
        126,
        512,
        0,
        EXTENT_DIRECTORY,
        EXTENT_DATA,
    )
    with suppress(refusals.ImageNamesOtherFiles, refusals.ImageHasBackingFile):
        inspected(bytes(inside) + text)
    assert time.monotonic() - began < 4
