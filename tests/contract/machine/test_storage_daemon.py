"""A real qemu-storage-daemon merges the layers of disks that no machine has open, by the same steps."""

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_disk_layers import make, shown
from test_running import Forgetful, state_in

from holdfast.host.processes import Processes
from holdfast.machine.capabilities import CapabilityProbe
from holdfast.machine.storage_daemon import StorageDaemonEnded, StorageDaemons
from holdfast.spec.attachment import Layer

OWNER = "operation:test"


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    made = Processes(state_in(tmp_path))
    yield made
    assert made.find() == []


def fill(path: Path, pattern: int, at: str, size: str) -> None:
    subprocess.run(
        ["qemu-io", "-c", f"write -P {pattern} {at} {size}", path], check=True, capture_output=True
    )


def chain_in(folder: Path) -> list[Layer]:
    """Three layers, top first, each with data of its own, and headers that name nothing."""
    for number, name in enumerate(("disk0", "disk0-1", "disk0-2")):
        make(folder / f"{name}.qcow2")
        fill(folder / f"{name}.qcow2", number + 1, f"{number * 512}k", "1M")
    names = ("disk0-2", "disk0-1", "disk0")
    return [Layer.of_file(folder / f"{name}.qcow2", "qcow2", name) for name in names]


async def test_layers_are_merged_up_and_down_without_a_machine(processes: Processes, tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    top, middle, lowest = chain
    before = shown(*(layer.path for layer in chain))
    daemons = StorageDaemons(processes, CapabilityProbe(processes, Forgetful()))
    socket, log = tmp_path / "m.sock", tmp_path / "log"
    async with daemons.layers(socket, None, log, OWNER) as layers:
        assert not socket.exists()
        await layers.add_chain(chain[1:])
        await layers.make_writable(middle, lowest.name)
        await layers.stream("merge", middle.name, None, lambda *_: None)
        await layers.make_fixed(middle, None)
    assert shown(top.path, middle.path) == before
    seen: list[tuple[int, int]] = []
    async with daemons.layers(socket, None, log, OWNER) as layers:
        await layers.add_chain([top, middle])
        await layers.make_writable(middle, None)
        told = lambda done, total: seen.append((done, total))  # noqa: E731
        if await layers.commit("merge", f"d-{top.name}", top.name, middle.name, told):
            await layers.finish("merge")
        await layers.make_fixed(middle, None)
    assert shown(middle.path) == before and seen


async def test_one_that_cannot_start_says_so(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.machine.storage_daemon._PROGRAM", "false")
    daemons = StorageDaemons(processes, CapabilityProbe(processes, Forgetful()))
    with pytest.raises(StorageDaemonEnded):
        async with daemons.layers(tmp_path / "m.sock", None, tmp_path / "log", OWNER):
            raise AssertionError
    assert not (tmp_path / "m.sock").exists()


async def test_killed_in_the_middle_it_leaves_a_whole_chain(processes: Processes, tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    before = shown(*(layer.path for layer in chain))
    daemons = StorageDaemons(processes, CapabilityProbe(processes, Forgetful()))
    with pytest.raises(RuntimeError):
        async with daemons.layers(tmp_path / "m.sock", None, tmp_path / "log", OWNER) as layers:
            await layers.add_chain(chain)
            await layers.make_writable(chain[1], chain[2].name)
            assert await layers.commit("x", "d-disk0-2", "disk0-2", "disk0-1", lambda *_: None)
            for marked in processes.find(role="storage"):
                await processes.end(marked.ref, grace=0.0)
            raise RuntimeError
    assert shown(*(layer.path for layer in chain)) == before
