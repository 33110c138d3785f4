"""Refusals of a seed disc, and what a failure leaves."""

from pathlib import Path

import pytest

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.storage.seed_disc import SeedFailed, write_seed_disc


@pytest.mark.parametrize("name", ["", ".", "..", "../user-data", "a/b", "-x", "User", "a\n", "é"])
async def test_only_plain_names_are_taken(tmp_path: Path, name: str) -> None:
    processes = Processes(StateFolder(tmp_path / "s", tmp_path / "r"))
    with pytest.raises(SeedFailed):
        await write_seed_disc(processes, tmp_path / "seed.iso", {name: ""}, "host")
    assert list(tmp_path.iterdir()) == []


async def test_a_failure_leaves_nothing_and_keeps_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(StateFolder(tmp_path / "s", tmp_path / "r"))
    (tmp_path / "seed.iso").write_bytes(b"old")
    monkeypatch.setattr("holdfast.storage.seed_disc._command", lambda disc, folder: ["false"])
    with pytest.raises(SeedFailed):
        await write_seed_disc(processes, tmp_path / "seed.iso", {"user-data": "x"}, "host")
    assert [path.name for path in tmp_path.iterdir()] == ["seed.iso"]
    assert (tmp_path / "seed.iso").read_bytes() == b"old"
