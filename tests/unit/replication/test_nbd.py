"""Extents in whole blocks."""

from hypothesis import given
from hypothesis import strategies as st

from holdfast.replication.nbd import in_blocks

SIZE = 64 * 1024 + 512


@given(st.sets(st.integers(0, SIZE // 512 - 1)))
def test_extents_become_whole_blocks_and_lose_nothing(sectors: set[int]) -> None:
    found = in_blocks([(sector * 512, 512) for sector in sorted(sectors)], SIZE)
    covered = [
        block for offset, length in found for block in range(offset // 4096, -(-(offset + length) // 4096))
    ]
    assert covered == sorted({sector // 8 for sector in sectors})
    at = -1
    for offset, length in found:
        assert offset > at
        assert offset % 4096 == 0
        at = offset + length
        assert at % 4096 == 0 or at == SIZE
