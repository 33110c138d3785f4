"""Thin logical volumes: the exact commands, on loop devices where the kernel has no device mapper."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loop_files import LoopFile
from loop_lvm import GROUP, THIN, LoopLvm
from storage_rooms import Rooms
from volume_life import live_through

from holdfast.spec.pool import BlockDevicePoolSpec, LvmThinPoolSpec, PoolHealth
from holdfast.spec.vm import VolumeFormat
from holdfast.storage.pools.block_device import (
    BlockDevicePool,
    DeviceInUse,
    DeviceNotEmpty,
    NotABlockDevice,
    _require_unused,
)
from holdfast.storage.pools.lvm_thin import LvmThinPool, VolumeGroupTaken
from holdfast.storage.pools.pool import FormatNotHeld, PoolVanished, VolumeId

MIB = 1 << 20
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes loop devices")


@pytest.fixture
async def lvm(rooms: Rooms) -> AsyncIterator[LoopLvm]:
    made = LoopLvm(rooms.state.root.parent / "lvm", 512 * MIB)
    pool = LvmThinPool("thin", LvmThinPoolSpec(group=GROUP, thin_pool=THIN), "1-2", made, made.devices)
    await pool.make()
    rooms.pools.add(pool)
    yield made
    made.close()


async def test_the_life_of_volumes(rooms: Rooms, lvm: LoopLvm) -> None:
    await live_through(rooms, "thin")
    assert list((lvm.devices / GROUP).iterdir()) == []
    for command in (
        (
            "lvcreate",
            "--yes",
            "--wipesignatures",
            "n",
            "--setactivationskip",
            "n",
            "--virtualsize",
            f"{32 * MIB + 32 * 1024 + 64 * MIB}b",
            "--name",
            "hf.one+5F1.disk0.part",
            "--thinpool",
            "vg/thin",
        ),
        ("lvrename", "vg", "hf.one+5F1.disk0.part", "hf.one+5F1.disk0"),
        (
            "lvcreate",
            "--yes",
            "--snapshot",
            "--setactivationskip",
            "n",
            "--name",
            "hf.three.disk0.part",
            "vg/hf.two.disk0",
        ),
        ("lvextend", "--yes", "--size", f"{160 * MIB + 160 * 1024 + 64 * MIB}b", "vg/hf.one+5F1.disk0-1"),
        ("lvrename", "vg", "hf.one+5F1.disk0-1", "hf.uno+20two.disk0-1"),
        ("lvremove", "--yes", "--force", "vg/hf.two.disk0"),
    ):
        assert command in lvm.asked  # fmt: skip


async def test_health_and_who_it_belongs_to(rooms: Rooms, lvm: LoopLvm) -> None:
    pool = rooms.pools.of("thin")
    state = await pool.state()
    assert (state.health, state.capacity) == (PoolHealth.AVAILABLE, 512 * MIB)
    other = LvmThinPool("other", LvmThinPoolSpec(group=GROUP, thin_pool=THIN), "3", lvm, lvm.devices)
    assert (await other.state()).health is PoolHealth.VANISHED
    with pytest.raises(VolumeGroupTaken):
        await other.make()
    with pytest.raises(FormatNotHeld):
        await pool.allocate(VolumeId("one", "disk0", VolumeFormat.RAW), MIB)
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
