"""Disks of a real QEMU: plugged on every bus, limited, grown, moved, given up, taken out. No guest runs."""

import asyncio
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_running import inputs_in, machines_of, state_in

from holdfast.host.processes import Processes
from holdfast.machine.disk_plug import NoFreePort, NotGrowableNow
from holdfast.machine.hotplug import UnplugIgnored
from holdfast.machine.running import RunningMachine
from holdfast.qmp.errors import QmpRefused
from holdfast.spec.attachment import DiskAttachment, Layer
from holdfast.spec.units import MIB
from holdfast.spec.vm import DiskBus, IoLimits

SIZE = 4 * MIB


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    made = Processes(state_in(tmp_path))
    yield made
    for found in made.find():
        await made.end(found.ref, grace=0.0)


@pytest.fixture
async def machine(processes: Processes, tmp_path: Path) -> AsyncIterator[RunningMachine]:
    inputs = replace(inputs_in(tmp_path, str(uuid.uuid4())), disks=(attachment(tmp_path, "disk0"),))
    made = await machines_of(processes).launch(inputs, None, tmp_path / "log")
    yield made
    await made.kill()


def volume(folder: Path, name: str, size: int = SIZE, below: Layer | None = None) -> Layer:
    path = folder / f"{name}.qcow2"
    backing = ["-u", "-b", str(below.path), "-F", "qcow2"] if below else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, path, str(size)], check=True)
    return Layer.of_file(path, "qcow2", name)


def attachment(folder: Path, disk: str, bus: DiskBus = DiskBus.VIRTIO, *names: str) -> DiskAttachment:
    """A disk with layers of these names, top first; one of its own name where none is given."""
    layers: list[Layer] = []
    for name in reversed(names or (disk,)):
        layers.insert(0, volume(folder, name, below=layers[0] if layers else None))
    return DiskAttachment(id=disk, bus=bus, layers=tuple(layers))


def write(layer: Layer, pattern: int) -> None:
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 0 1M", layer.path],
        check=True,
        capture_output=True,
    )


def holds(layer: Layer, pattern: int) -> bool:
    image = f"driver=qcow2,backing=,file.driver=file,file.filename={layer.path}"
    argv = ["qemu-io", "-r", "-c", f"read -P {pattern} 0 1M", "--image-opts", image]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode == 0 and "verification failed" not in done.stdout


async def plug(machine: RunningMachine, disk: DiskAttachment) -> None:
    await machine.disks.add(disk, await machine.disks.require_place(disk.id, disk.bus, ["disk0"]))


async def test_plugged_limited_grown_and_taken_out(machine: RunningMachine, tmp_path: Path) -> None:
    before = set(await machine.disks.nodes())
    for number, bus in enumerate(DiskBus, 1):
        disk = attachment(tmp_path, f"disk{number}", bus)
        disk = disk.model_copy(update={"limits": IoLimits(iops=100, burst_iops=200, burst_seconds=3)})
        await plug(machine, disk)
        assert await machine.disks.has(disk.id)
        await machine.disks.add(disk, None)  # it is there already
    with pytest.raises(NoFreePort):
        await machine.disks.require_place("disk90", DiskBus.NVME, ["disk0"])

    await machine.disks.limit("disk1", IoLimits(bandwidth_read=MIB, burst_bandwidth=2 * MIB))
    assert await limits_of(machine, "disk1") == (0, 0, MIB, 2 * MIB)
    await machine.disks.limit("disk1", IoLimits())
    assert await limits_of(machine, "disk1") == (0, 0, 0, 0)
    assert await limits_of(machine, "disk2") == (100, 200, 0, 0)

    for number, bus in enumerate(DiskBus, 1):
        if bus is DiskBus.NVME:
            with pytest.raises(NotGrowableNow):
                await machine.disks.resize(f"disk{number}", bus, 2 * SIZE)
            continue
        await machine.disks.resize(f"disk{number}", bus, 2 * SIZE)
        assert await machine.disks.size(f"disk{number}") == 2 * SIZE

    await machine.disks.remove("disk2")  # the SCSI bus asks nobody
    await machine.disks.remove("disk2")
    assert not await machine.disks.has("disk2")
    assert {name for name in await machine.disks.nodes() if "disk2" in name} == set()
    with pytest.raises(UnplugIgnored):
        await machine.disks.remove("disk3", limit=0.2)
    assert await machine.disks.has("disk3")
    assert set(await machine.disks.nodes()) > before


async def limits_of(machine: RunningMachine, disk: str) -> tuple[int, ...]:
    asked = {"path": f"/objects/tg-{disk}", "property": "limits"}
    found = await machine.disks._session.execute("qom-get", asked)
    return tuple(found[name] for name in ("iops-total", "iops-total-max", "bps-read", "bps-read-max"))


async def test_a_disk_that_qemu_does_not_take_leaves_nothing(machine: RunningMachine, tmp_path: Path) -> None:
    before = set(await machine.disks.nodes())
    disk = attachment(tmp_path, "disk1", DiskBus.NVME)
    with pytest.raises(QmpRefused):
        await machine.disks.add(disk, 99)
    assert set(await machine.disks.nodes()) == before
    await plug(machine, disk)


async def test_moved_with_a_chain_and_given_up(machine: RunningMachine, tmp_path: Path) -> None:
    old = attachment(tmp_path, "disk1", DiskBus.VIRTIO, "disk1-1", "disk1")
    write(old.layers[0], 7)
    await plug(machine, old)
    (tmp_path / "to").mkdir()
    new = attachment(tmp_path / "to", "disk1", DiskBus.VIRTIO, "disk1-3", "disk1-2")
    seen: list[tuple[int, int]] = []
    await machine.moves.copy(old, new, lambda done, total: seen.append((done, total)))
    assert await machine.moves.top("disk1") == "d-disk1-1"
    await machine.moves.copy(old, new, lambda *_: None)  # it is under way already
    await machine.moves.give_up(new)
    assert await machine.moves.top("disk1") == "d-disk1-1"
    assert not {name for name in await machine.disks.nodes() if name in ("d-disk1-2", "d-disk1-3")}

    await machine.moves.copy(old, new, lambda *_: None)
    await machine.moves.switch(new)
    assert await machine.moves.top("disk1") == "d-disk1-3"
    await machine.moves.close(old)
    names = {name for name in await machine.disks.nodes() if "disk1" in name}
    assert names == {"th-disk1", "d-disk1-2", "f-disk1-2", "d-disk1-3", "f-disk1-3"}
    await machine.disks.resize("disk1", DiskBus.VIRTIO, 2 * SIZE)
    await machine.kill()
    assert holds(new.layers[0], 7)
    assert not holds(new.layers[1], 7)  # what was below is not copied into the top


async def test_a_killed_qemu_leaves_the_old_layers_right(machine: RunningMachine, tmp_path: Path) -> None:
    old = attachment(tmp_path, "disk1")
    write(old.layers[0], 9)
    await plug(machine, old)
    (tmp_path / "to").mkdir()
    new = attachment(tmp_path / "to", "disk1", DiskBus.VIRTIO, "disk1-1")
    await machine.moves.copy(old, new, lambda *_: None)
    os.kill(machine.ref.pid, signal.SIGKILL)
    await asyncio.wait_for(machine.ended.wait(), 10)
    assert holds(old.layers[0], 9)
