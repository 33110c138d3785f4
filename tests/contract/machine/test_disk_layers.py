"""Layers in a real QEMU: switched at one instant, streamed and committed, while a guest's disk is written."""

import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from test_running import inputs_in, machines_of, state_in

from holdfast.host.processes import Processes
from holdfast.machine.disk_layers import root_of
from holdfast.machine.running import RunningMachine
from holdfast.spec.attachment import DiskAttachment, Layer
from holdfast.spec.vm import DiskBus

SIZE = 8 << 20


def make(path: Path) -> None:
    options = "compat=1.1,cluster_size=128k,extended_l2=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE)], check=True)


@dataclass
class Rig:
    machine: RunningMachine
    folder: Path

    def layer(self, name: str) -> Layer:
        return Layer.of_file(self.folder / f"{name}.qcow2", "qcow2", name)

    async def io(self, disk: str, command: str) -> str:
        """What qemu-io says, which QEMU writes to its own standard output."""
        device = "disk-disk1" if disk == "disk1" else f"/machine/peripheral/disk-{disk}/virtio-backend"
        log = self.folder / "log"
        before = len(log.read_text())
        line = f'qemu-io -d {device} "{command}"'
        said = await self.machine._session.execute("human-monitor-command", {"command-line": line})
        return str(said) + log.read_text()[before:]

    async def write(self, disk: str, pattern: int, at: str, size: str) -> None:
        said = await self.io(disk, f"write -P {pattern} {at} {size}")
        assert said.startswith("wrote"), said

    async def reads(self, disk: str, pattern: int, at: str, size: str) -> bool:
        said = await self.io(disk, f"read -P {pattern} {at} {size}")
        assert "read" in said, said
        return "Pattern verification failed" not in said

    async def open(self, name: str) -> None:
        make(self.folder / f"{name}.qcow2")
        await self.machine.layers.add(self.layer(name))

    async def put_on(self, **tops: str) -> None:
        """New layers by disk id, over what is on top."""
        chains = await self.machine.layers.chains()
        for name in tops.values():
            await self.open(name)
        await self.machine.layers.switch({chains[disk][0]: name for disk, name in tops.items()})


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    processes = Processes(state_in(tmp_path))
    disks = []
    for name, bus in (("disk0", DiskBus.VIRTIO), ("disk1", DiskBus.SCSI)):
        make(tmp_path / f"{name}.qcow2")
        layer = Layer.of_file(tmp_path / f"{name}.qcow2", "qcow2", name)
        disks.append(DiskAttachment(id=name, bus=bus, layers=(layer,)))
    inputs = replace(inputs_in(tmp_path, str(uuid.uuid4())), disks=tuple(disks))
    machine = await machines_of(processes).launch(inputs, None, tmp_path / "log")
    yield Rig(machine, tmp_path)
    await machine.kill()


def shown(*layers: Path) -> bytes:
    """What a chain (top first) shows, read by qemu-img."""
    node = ""
    for layer in reversed(layers):
        backing = f',"backing":{node}' if node else ',"backing":null'
        node = f'{{"driver":"qcow2","file":{{"driver":"file","filename":"{layer}"}}{backing}}}'
    target = layers[0].with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", f"json:{node}", target], check=True)
    return target.read_bytes()


async def test_layers_are_switched_together_streamed_and_committed(rig: Rig) -> None:
    layers = rig.machine.layers
    await rig.write("disk0", 1, "0", "1M")
    await rig.write("disk1", 1, "0", "1M")
    await rig.put_on(disk0="disk0-1", disk1="disk1-1")
    assert await layers.chains() == {"disk0": ("disk0-1", "disk0"), "disk1": ("disk1-1", "disk1")}
    await rig.write("disk0", 2, "512k", "1M")
    await rig.put_on(disk0="disk0-2")
    await rig.write("disk0", 3, "2M", "64k")
    await rig.put_on(disk0="disk0-3")
    await rig.write("disk0", 4, "0", "4k")
    assert (await layers.chains())["disk0"] == ("disk0-3", "disk0-2", "disk0-1", "disk0")

    # Up, into a layer that is only read: disk0-1 into disk0-2.
    await layers.make_writable(rig.layer("disk0-2"), "disk0-1")
    await layers.stream("merge", "disk0-2", "disk0", lambda *_: None)
    await layers.make_fixed(rig.layer("disk0-2"), "disk0")
    assert (await layers.chains())["disk0"] == ("disk0-3", "disk0-2", "disk0")
    # Once more, as after a crash before it was recorded.
    await layers.make_writable(rig.layer("disk0-2"), "disk0")
    await layers.stream("merge", "disk0-2", "disk0", lambda *_: None)
    await layers.drop("disk0-1")

    # Down, into the lowest one: disk0-2 into disk0.
    await layers.make_writable(rig.layer("disk0"), None)
    await layers.make_writable(rig.layer("disk0-3"), "disk0-2")
    assert not await layers.commit("merge", root_of("disk0"), "disk0-2", "disk0", lambda *_: None)
    await layers.make_fixed(rig.layer("disk0"), None)
    await layers.drop("disk0-2")
    assert (await layers.chains())["disk0"] == ("disk0-3", "disk0")
    whole = [(1, "4k", "508k"), (2, "512k", "1M"), (3, "2M", "64k"), (4, "0", "4k"), (0, "3M", "1M")]
    for pattern, at, size in whole:
        assert await rig.reads("disk0", pattern, at, size), (pattern, at)

    # Down, of the layer that is written to.
    await layers.make_writable(rig.layer("disk0"), None)
    assert await layers.commit("merge", root_of("disk0"), "disk0-3", "disk0", lambda *_: None)
    await rig.write("disk0", 5, "3M", "64k")
    await rig.machine.pause()
    await layers.finish("merge")
    await layers.drop("disk0-3")
    assert (await layers.chains())["disk0"] == ("disk0",)
    await rig.write("disk0", 6, "4M", "64k")
    for pattern, at, size in [*whole[:4], (5, "3M", "64k"), (6, "4M", "64k")]:
        assert await rig.reads("disk0", pattern, at, size), (pattern, at)
    assert await layers.nodes() == {
        *("f-disk0", "d-disk0", "th-disk0", "f-disk1", "d-disk1", "th-disk1", "f-disk1-1", "d-disk1-1")
    }
    await rig.machine.quit()
    content = shown(rig.folder / "disk0.qcow2")
    assert content[:4096] == b"\4" * 4096 and content[3 << 20] == 5 and content[4 << 20] == 6
    assert shown(rig.folder / "disk1-1.qcow2", rig.folder / "disk1.qcow2")[:4] == b"\1" * 4
