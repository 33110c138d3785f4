"""Emulated TPMs for the tests of trust, each made of one that was manufactured once."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "guests"))

from emulated_tpm import EmulatedTpm, have_tools, manufacture


@pytest.fixture(scope="session")
def manufactured() -> Iterator[list[Path]]:
    """Two TPMs of different identity, by authorities of their own."""
    if not have_tools():
        pytest.skip("swtpm, swtpm-tools and tpm2-tools are needed")
    with tempfile.TemporaryDirectory(prefix="hft-made-", dir="/tmp") as root:
        folders = [Path(root) / name for name in ("one", "two")]
        for folder in folders:
            manufacture(folder)
        yield folders


@pytest.fixture
def tpms(manufactured: list[Path]) -> Iterator[list[EmulatedTpm]]:
    """Both running, in folders whose paths fit a UNIX socket."""
    with tempfile.TemporaryDirectory(prefix="hft-", dir="/tmp") as root:
        made = []
        try:
            for source in manufactured:
                shutil.copytree(source, Path(root) / source.name)
                made.append(EmulatedTpm(Path(root) / source.name).start())
            yield made
        finally:
            for each in made:
                each.stop()


@pytest.fixture
def emulated(tpms: list[EmulatedTpm]) -> EmulatedTpm:
    return tpms[0]
