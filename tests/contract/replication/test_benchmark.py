"""What the benchmark of replicas is built of fits the daemon's own parts; it is too long to be run here."""

from pathlib import Path

import pytest


async def test_a_synthetic_vm_is_one_that_can_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    from bench._synthetic import Source, SyntheticVm  # the benchmarks are no package of ours

    vm, source = SyntheticVm(tmp_path / "vm", "web", 1 << 20), Source(tmp_path / "source")
    try:
        assert [each.size for each in vm.look().spec.disks] == [1 << 20]
    finally:
        await source.close()
