"""Makes the bench of TPMs importable beside the tests of this room, and gives each test one of its own."""

import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

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
