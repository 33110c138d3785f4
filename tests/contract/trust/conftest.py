"""TPMs for the tests of trust: a VM's own, and emulated ones made of such that were manufactured once."""

import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(_TESTS / "guests"), str(_TESTS / "unit/trust")]

from emulated_tpm import EmulatedTpm, have_tools, manufacture
from tpm_bench import Bench

from holdfast.host.folders import StateFolder
from holdfast.spec.ids import new_id


@pytest.fixture
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    root = Path("/tmp") / f"hft-{new_id()[:8]}"
    root.mkdir(mode=0o711)
    root.chmod(0o711)
    state = StateFolder(root / "s", root / "r")
    state.prepare()
    bench = Bench(state)
    yield bench
    for marked in bench.processes.find():
        await bench.processes.end(marked.ref, grace=1)
    shutil.rmtree(root)


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
