"""Tables over the journal, followed as QEMU would: each block leads to its place, to zeroes, or below."""

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from holdfast.replication.store.index import BLOCK, ENTRY, FILE_SHIFT, RANGE, united
from holdfast.replication.store.qcow2_tables import LARGEST_DISK, Tables

PER_TABLE = 512
HEADER_AT = 3 * BLOCK


def follow(tables: Tables, block: int, header: bytes, rest: bytes, at: int) -> int | str:
    """The byte offset in the file, "zero", or "below"."""
    magic, version = struct.unpack_from(">4sI", header)
    bits, size = struct.unpack_from(">IQ", header, 20)
    l1_length, l1_at = struct.unpack_from(">IQ", header, 36)
    assert (magic, version, 1 << bits, size) == (b"QFI\xfb", 3, BLOCK, tables.size)
    assert block // PER_TABLE < l1_length

    def entry(offset: int) -> int:
        place = offset + HEADER_AT - at
        assert 0 <= place <= len(rest) - 8
        return int.from_bytes(rest[place : place + 8], "big")

    l2_at = entry(l1_at + block // PER_TABLE * 8) & ~(1 << 63)
    if not l2_at:
        return "below"
    assert l2_at % BLOCK == 0
    found = entry(l2_at + block % PER_TABLE * 8)
    if found == 1:
        return "zero"
    return (found & ~(1 << 63)) + HEADER_AT if found else "below"


@given(
    st.integers(1, 5 * PER_TABLE),
    st.sets(st.integers(0, 5 * PER_TABLE - 1), max_size=30),
    st.lists(st.tuples(st.integers(0, 5 * PER_TABLE), st.integers(1, 3 * PER_TABLE)), max_size=5),
)
def test_every_block_leads_where_it_should(
    blocks: int, written: set[int], zeros: list[tuple[int, int]]
) -> None:
    written = {each for each in written if each < blocks}
    entries = np.zeros(len(written), ENTRY)
    entries["block"] = sorted(written)
    entries["at"] = (7 << FILE_SHIFT) + 300 + np.arange(len(written))
    tables = Tables(blocks * BLOCK, entries, united(np.array(zeros, RANGE)))
    at = 1000 * BLOCK
    header, rest = tables.encode(HEADER_AT, at)
    assert len(header) == BLOCK and len(rest) == tables.blocks * BLOCK
    place = dict(zip(sorted(written), range(300, 300 + len(written)), strict=True))
    for block in range(blocks):
        zeroed = any(first <= block < first + count for first, count in zeros)
        want = place[block] * BLOCK if block in place else "zero" if zeroed else "below"
        assert follow(tables, block, header, rest, at) == want


def test_zeroes_over_the_largest_disk_take_little_room() -> None:
    entries = np.zeros(1, ENTRY)
    entries[0] = (5, (1 << FILE_SHIFT) + 300, 0)
    tables = Tables(LARGEST_DISK, entries, np.array([(0, LARGEST_DISK // BLOCK)], RANGE))
    header, rest = tables.encode(HEADER_AT, 1000 * BLOCK)
    assert len(rest) <= (32 << 20) + 4 * BLOCK
    assert follow(tables, 5, header, rest, 1000 * BLOCK) == 300 * BLOCK
    assert follow(tables, LARGEST_DISK // BLOCK - 1, header, rest, 1000 * BLOCK) == "zero"
