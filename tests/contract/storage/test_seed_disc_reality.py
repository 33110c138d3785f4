"""A seed disc read back by programs other than the one that wrote it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.storage.seed_disc import write_seed_disc

pytestmark = pytest.mark.skipif(shutil.which("xorriso") is None, reason="xorriso is not installed")

FILES = {
    "user-data": "#cloud-config\n" + "é\n" * 40_000,
    "meta-data": '{"instance-id": "x"}\n',
    "network-config": "",
}


@pytest.fixture
async def disc(tmp_path: Path) -> Path:
    processes = Processes(StateFolder(tmp_path / "s", tmp_path / "r"))
    path = tmp_path / "seed.iso"
    await write_seed_disc(processes, path, {"user-data": "before"}, "host")
    await write_seed_disc(processes, path, FILES, "host")
    return path


def test_only_the_owner_reads_it_and_nothing_else_is_left(disc: Path) -> None:
    assert os.stat(disc).st_mode & 0o777 == 0o600
    assert [path.name for path in disc.parent.iterdir()] == ["seed.iso"]


def test_its_label_is_what_cloud_init_looks_for(disc: Path) -> None:
    found = subprocess.run(
        ["blkid", "-p", "-o", "export", str(disc)], capture_output=True, text=True, check=True
    )
    assert "LABEL=cidata" in found.stdout.splitlines()
    assert "TYPE=iso9660" in found.stdout.splitlines()


@pytest.mark.skipif(shutil.which("isoinfo") is None, reason="isoinfo is not installed")
@pytest.mark.parametrize("names", ["-R", "-J"])
def test_another_program_reads_what_was_written(disc: Path, names: str) -> None:
    for name, text in FILES.items():
        read = subprocess.run(
            ["isoinfo", "-i", str(disc), names, "-x", f"/{name}"], capture_output=True, check=True
        )
        assert read.stdout.decode() == text
