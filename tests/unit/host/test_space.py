"""Space and memory are refused with figures."""

from pathlib import Path

import pytest
from fake_host import put

from holdfast.host.reserve import RESERVED, SpaceReserve
from holdfast.host.space import MemoryShort, NoSpace, available_memory, require_memory, require_space
from holdfast.spec.units import GIB, MIB


def test_space_that_is_there_passes_also_for_a_folder_to_be(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 4096)


def test_too_little_space_says_how_much_is_free(tmp_path: Path) -> None:
    with pytest.raises(NoSpace) as refusal:
        require_space(tmp_path / "images", 2**60)
    error = refusal.value.as_dict()
    assert (error["id"], error["kind"], error["value"]) == ("no-space", "Insufficient", 2**60)
    assert 0 <= error["detail"]["free"] < 2**60 and error["cure"]


def test_memory(tmp_path: Path) -> None:
    put(tmp_path, {"proc/meminfo": "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 1048576 kB\n"})
    assert available_memory(tmp_path) == GIB
    require_memory(GIB, tmp_path)
    with pytest.raises(MemoryShort, match="1 GiB this host has free now"):
        require_memory(GIB + MIB, tmp_path)
    with pytest.raises(MemoryShort, match="4 GiB this host has in all") as refusal:
        require_memory(5 * GIB, tmp_path)
    assert refusal.value.id == "not-enough-memory"


def test_a_reserve_that_was_never_filled_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    for had in (b"", b"cut short"):
        path.write_bytes(had)
        SpaceReserve(path).keep()
        assert path.stat().st_size == RESERVED <= path.stat().st_blocks * 512
    assert SpaceReserve(path).give_up() and not path.exists()
    SpaceReserve(path).keep()
    assert path.stat().st_size == RESERVED
