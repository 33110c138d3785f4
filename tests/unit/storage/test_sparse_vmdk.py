"""VMDKs with uncompressed grains (monolithicSparse) with one lie in each; slow descriptors."""

import struct
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from vmdk_made import opened

from holdfast.spec.image import ImageKind
from holdfast.storage.formats import refusals
from holdfast.storage.formats.reading import Inspection
from holdfast.storage.formats.vmdk import HEADER
from holdfast.storage.inspect import inspect_reader

SECTOR, GRAIN, PER_TABLE = 512, 128, 512
TEXT_AT, DIRECTORY, TABLES = 1, 21, 22
DATA = TABLES + 2 * 4
CAPACITY = 600 * GRAIN
TEXT = b"""# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicSparse"
RW 76800 SPARSE "disk.vmdk"
"""


def sparse(
    entries: dict[int, int], directory: tuple[int, ...] = (TABLES, TABLES + 4), text: bytes = TEXT
) -> bytes:
    """Grain tables by `entries` (number of the grain to its sector), and three grains behind them."""
    made = bytearray((DATA + 3 * GRAIN) * SECTOR)
    fields = (1, 3, CAPACITY, GRAIN, TEXT_AT, 20, PER_TABLE, 0, DIRECTORY, DATA)
    HEADER.pack_into(made, 0, b"KDMV", *fields)
    made[TEXT_AT * SECTOR : TEXT_AT * SECTOR + len(text)] = text
    struct.pack_into("<2I", made, DIRECTORY * SECTOR, *directory)
    for grain, sector in entries.items():
        struct.pack_into("<I", made, TABLES * SECTOR + 4 * grain, sector)
    return bytes(made)


def inspected(data: bytes) -> Inspection:
    with opened(data) as reader:
        return inspect_reader(reader, ImageKind.DISK)


def test_an_honest_one_is_taken() -> None:
    found = inspected(sparse({0: DATA, 1: 1, 7: DATA + 2 * GRAIN, 599: DATA + GRAIN}))
    assert (found.format, found.virtual_size) == ("vmdk", CAPACITY * SECTOR)


BAD: dict[str, tuple[bytes, type[Exception]]] = {
    "one grain for two places": (sparse({0: DATA, 1: DATA}), refusals.ImageDamaged),
    "one grain for two places of two tables": (sparse({0: DATA, 599: DATA}), refusals.ImageDamaged),
    "a grain that begins in another": (sparse({0: DATA, 1: DATA + GRAIN - 1}), refusals.ImageDamaged),
    "a grain that ends in another": (sparse({0: DATA + 8, 1: DATA}), refusals.ImageDamaged),
    "a table for two stretches": (sparse({0: DATA}, (TABLES, TABLES)), refusals.ImageDamaged),
    "a table that begins in another": (sparse({0: DATA}, (TABLES, TABLES + 3)), refusals.ImageDamaged),
    "a grain beyond the file": (sparse({0: 1 << 30}), refusals.ImageTruncated),
    "a table beyond the file": (sparse({}, (TABLES, 1 << 30)), refusals.ImageTruncated),
    "an extent elsewhere": (
        sparse({}, text=TEXT.replace(b'SPARSE "disk.vmdk"', b'FLAT "/etc/shadow" 0')),
        refusals.ImageNamesOtherFiles,
    ),
    "an extent elsewhere, after odd spaces": (
        sparse({}, text=TEXT.replace(b"RW 76800 SPARSE", b"\r\x0b\x0c RW\t76800\tFLAT")),
        refusals.ImageNamesOtherFiles,
    ),
    "a second extent": (
        sparse({}, text=TEXT + b'RW 1 FLAT "/etc/shadow" 0\n'),
        refusals.ImageNamesOtherFiles,
    ),
    "a device as extent": (
        sparse({}, text=TEXT.replace(b"SPARSE", b"VMFSRDM")),
        refusals.ImageNamesOtherFiles,
    ),
    "a descriptor alone": (
        TEXT.replace(b'SPARSE "disk.vmdk"', b'FLAT "/etc/shadow" 0'),
        refusals.ImageNamesOtherFiles,
    ),
    "a parent elsewhere": (
        sparse({}, text=TEXT.replace(b"CID=ffffffff", b'CID=1\nparentFileNameHint="/etc/shadow"')),
        refusals.ImageHasBackingFile,
    ),
    "no capacity, so that the text counts": (
        bytes(bytearray(sparse({}))[:12]) + bytes(8) + sparse({})[20:],
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
    inside = bytearray(sparse({}))
    at = len(inside) // SECTOR
    HEADER.pack_into(inside, 0, b"KDMV", 1, 3, CAPACITY, GRAIN, at, 126, PER_TABLE, 0, DIRECTORY, DATA)
    with suppress(refusals.ImageNamesOtherFiles, refusals.ImageHasBackingFile):
        inspected(bytes(inside) + text)
    assert time.monotonic() - began < 1
