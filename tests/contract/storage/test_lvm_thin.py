"""Thin logical volumes: the exact commands, on loop devices where the kernel has no device mapper."""

import hashlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loop_files import LoopFile
from loop_lvm import GROUP, THIN, LoopLvm
from storage_rooms import Rooms
from volume_life import io, live_through

from holdfast.spec.attachment import Place
from holdfast.spec.pool import BlockDevicePoolSpec, LvmThinPoolSpec, PoolHealth
from holdfast.spec.vm import Disk, VolumeFormat
from holdfast.storage.appliances.bringing import Bringing, DiskContent
from holdfast.storage.appliances.manifest import Digest
from holdfast.storage.appliances.source import HeldFile
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


def foreign(folder: Path, form: str) -> Path:
    raw, source = folder / "raw", folder / "source"
    raw.write_bytes(bytes(MIB) + b"\5" * MIB + bytes(14 * MIB))
    options = ["-o", "subformat=streamOptimized"] if form == "vmdk" else []
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, source], check=True)
    return source


@pytest.mark.parametrize("form", ["qcow2", "vmdk"])
async def test_a_foreign_disk_is_brought_onto_a_device(rooms: Rooms, lvm: LoopLvm, form: str) -> None:
    source = foreign(rooms.state.scratch, form)
    bringing = Bringing(rooms.processes, rooms.state.runtime, rooms.identity, "operation:x")
    disk = Disk(id="disk0", volume="disk0", size=16 * MIB, pool="thin")
    with source.open("rb") as file:
        held = HeldFile("source", file.fileno(), 0, source.stat().st_size)
        digest = Digest("SHA256", hashlib.sha256(source.read_bytes()).hexdigest())
        content = DiskContent(form, disk.size)

        async def write(target: Place, digest: Digest = digest) -> None:
            assert await bringing.bring(held, content, digest, target, disk, lambda _, __: None) is None

        with pytest.raises(ExceptionGroup):
            wrong = Digest("SHA256", "0" * 64)
            await rooms.volumes.put("one", disk, lambda to: write(to, wrong), identity=rooms.identity)
        assert list((lvm.devices / GROUP).iterdir()) == []
        await rooms.volumes.put("one", disk, write, identity=rooms.identity)
    shown = ("read -P 0 0 1M", "read -P 5 1M 1M", "read -P 0 2M 14M")
    assert await io(rooms.volumes.chain("one", disk), *shown)
    await rooms.volumes.delete("one", disk)


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
