"""Thin logical volumes: the exact commands, on loop devices where the kernel has no device mapper."""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from loop_files import LoopFile
from loop_lvm import GROUP, THIN, LoopLvm
from storage_rooms import Rooms

from holdfast.spec.attachment import BlockPlace, Layer
from holdfast.spec.pool import BlockDevicePoolSpec, LvmThinPoolSpec, PoolHealth
from holdfast.spec.vm import Disk
from holdfast.storage.pools.block_device import (
    BlockDevicePool,
    DeviceInUse,
    DeviceNotEmpty,
    NotABlockDevice,
    _require_unused,
)
from holdfast.storage.pools.lvm_thin import LvmThinPool, VolumeGroupTaken
from holdfast.storage.pools.pool import PoolVanished, VolumeId, VolumesInTheWay

MIB = 1 << 20
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes loop devices")


def nothing(_: float, __: str) -> None:
    pass


@pytest.fixture
async def lvm(rooms: Rooms) -> AsyncIterator[LoopLvm]:
    made = LoopLvm(rooms.state.root.parent / "lvm", 512 * MIB)
    pool = LvmThinPool("thin", LvmThinPoolSpec(group=GROUP, thin_pool=THIN), "1-2", made, made.devices)
    await pool.make()
    rooms.pools.add(pool)
    yield made
    made.close()


def io(layers: Sequence[Layer], *commands: str, write: bool = False) -> bool:
    node = ""
    for layer in reversed(layers):
        driver = "host_device" if isinstance(layer.place, BlockPlace) else "file"
        file = f'"file":{{"driver":"{driver}","filename":"{layer.path}"}}'
        node = f'{{"driver":"{layer.format}",{file},"backing":{node or "null"}}}'
    arguments = [part for command in commands for part in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", *(() if write else ("-r",)), *arguments, f"json:{node}"], capture_output=True, text=True
    )
    return done.returncode == 0 and "failed" not in done.stdout + done.stderr


async def test_the_life_of_volumes(rooms: Rooms, lvm: LoopLvm) -> None:
    """Blank, layered, cloned, carried over to files and back, grown, renamed, removed."""
    volumes, identity = rooms.volumes, rooms.identity
    disk = Disk(id="disk0", volume="disk0", size=32 * MIB, pool="thin")
    await volumes.create("one_1", disk, copy_of=None, identity=identity, operation="x", progress=nothing)
    assert ("lvcreate", "--yes", "--wipesignatures", "n", "--setactivationskip", "n", "--virtualsize",
            f"{32 * MIB + 32 * 1024 + 64 * MIB}b", "--name", "hf.one+5F1.disk0.part", "--thinpool",
            "vg/thin") in lvm.asked  # fmt: skip
    assert ("lvrename", "vg", "hf.one+5F1.disk0.part", "hf.one+5F1.disk0") in lvm.asked
    device = volumes.chain("one_1", disk)[0].path
    if identity:
        assert device.stat().st_uid == identity.uid
    assert io(volumes.chain("one_1", disk), "write -P 5 0 8M", write=True)
    layer = await volumes.create_overlay("one_1", disk, "disk0-1", identity=identity, operation="x")
    disk = disk.model_copy(update={"volume": "disk0-1", "below": ("disk0",)})
    assert volumes.chain("one_1", disk)[0] == layer
    assert io(volumes.chain("one_1", disk), "write -P 9 1M 64k", write=True)
    shown = ("read -P 5 0 1M", "read -P 9 1M 64k", "read -P 0 8M 24M")

    clone = Disk(id="disk0", volume="disk0", size=32 * MIB, pool="thin")
    await volumes.clone("one_1", disk, "two", clone, identity=identity, operation="x", progress=nothing)
    assert io(volumes.chain("two", clone), *shown)
    await volumes.clone("two", clone, "three", clone, identity=identity, operation="x", progress=nothing)
    assert ("lvcreate", "--yes", "--snapshot", "--setactivationskip", "n", "--name",
            "hf.three.disk0.part", "vg/hf.two.disk0") in lvm.asked  # fmt: skip
    assert io(volumes.chain("three", clone), *shown)

    rooms.state.vm("one_1").mkdir()
    for name in ("disk0-1", "disk0"):
        await volumes.copy_layer(
            "one_1", disk, name, None, identity=identity, operation="x", progress=nothing
        )
    carried = disk.model_copy(update={"pool": None})
    assert io(volumes.chain("one_1", carried), *shown)
    await volumes.delete("one_1", disk)
    for name in ("disk0-1", "disk0"):
        await volumes.copy_layer(
            "one_1", carried, name, "thin", identity=identity, operation="x", progress=nothing
        )
    assert io(volumes.chain("one_1", disk), *shown)
    await volumes.resize("one_1", disk, 256 * MIB, operation="x")
    assert io(volumes.chain("one_1", disk), *shown[:2], "read -P 0 32M 224M")

    for _ in range(2):
        await volumes.rename("one_1", "uno two", [disk])
    await volumes.require("uno two", disk)
    assert await volumes.listed("uno two", "thin") == ["hf.uno+20two.disk0", "hf.uno+20two.disk0-1"]
    with pytest.raises(VolumesInTheWay):
        await volumes.rename("uno two", "two", [clone])
    for vm, each in (("uno two", disk), ("two", clone), ("three", clone)):
        await volumes.delete(vm, each)
        await volumes.delete(vm, each)
    assert list((lvm.devices / GROUP).iterdir()) == []


async def test_health_and_who_it_belongs_to(rooms: Rooms, lvm: LoopLvm) -> None:
    pool = rooms.pools.of("thin")
    state = await pool.state()
    assert (state.health, state.capacity) == (PoolHealth.AVAILABLE, 512 * MIB)
    other = LvmThinPool("other", LvmThinPoolSpec(group=GROUP, thin_pool=THIN), "3", lvm, lvm.devices)
    assert (await other.state()).health is PoolHealth.VANISHED
    with pytest.raises(VolumeGroupTaken):
        await other.make()
    lvm.away = True
    assert (await pool.state()).health is PoolHealth.VANISHED
    with pytest.raises(PoolVanished):
        await pool.has(VolumeId("one", "disk0"))
    lvm.away = False
    await pool.unmake()
    assert lvm.tags == set()


def test_only_block_devices_that_nobody_uses(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("/dev/null")):
        with pytest.raises(NotABlockDevice):
            _require_unused(path)


class RecordedLvm:
    """Answers as a group does on which the pool's thin pool has just been made."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    async def run(self, *arguments: str) -> str:
        self.asked.append(arguments)
        row = {"lv_attr": "twi-a-tz--", "vg_tags": ""}
        return json.dumps({"report": [{"lv": [row]}]}) if arguments[0] == "lvs" else ""


async def test_a_device_that_holds_something_is_not_overwritten(rooms: Rooms) -> None:
    loop = LoopFile.make(rooms.state.root.parent, "ext4", 16 * MIB)
    device = loop.device()

    def pool(lvm: RecordedLvm, erase: bool) -> BlockDevicePool:
        spec = BlockDevicePoolSpec(device=device)
        return BlockDevicePool("b", spec, "12345678-9", lvm, rooms.processes, erase=erase)

    lvm = RecordedLvm()
    try:
        with pytest.raises(DeviceInUse):
            await pool(lvm, True).make()
    finally:
        loop.unmount()
    device = loop.attach()
    try:
        with pytest.raises(DeviceNotEmpty) as caught:
            await pool(lvm, False).make()
        assert "ext4" in caught.value.message and "--erase" in caught.value.cure
        assert lvm.asked == []
        await pool(lvm, True).make()
        group = "holdfast-12345678"
        assert [each for each in lvm.asked if each[0] != "lvs"] == [
            ("vgcreate", "--yes", group, str(device)),
            ("lvcreate", "--yes", "--type", "thin-pool", "--extents", "95%FREE", "--name", "volumes", group),
            ("vgchange", "--addtag", "holdfast_pool_123456789", group),
        ]
        lvm.asked.clear()
        await pool(lvm, False).make()
        assert lvm.asked[0][0] == "vgcreate", "its signatures are gone"
    finally:
        loop.detach(device)
