"""Volumes by the real qemu-img: thin, whole, blank, cloned, flattened, and the host's disk full."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from storage_rooms import Rooms

from holdfast.spec.vm import Disk
from holdfast.storage.convert import to_qcow2
from holdfast.storage.images import ImageNotFound
from holdfast.storage.qemu_img import ConversionFailed
from holdfast.storage.volumes import ImageChainBroken, VolumeMissing

MIB = 1 << 20


def nothing(_: float, __: str) -> None:
    pass


def info(path: Path) -> dict[str, Any]:
    out = subprocess.check_output(["qemu-img", "info", "-f", "qcow2", "--output=json", str(path)])
    found: dict[str, Any] = json.loads(out)
    return found


def write(path: Path, pattern: int, at: str) -> None:
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {at}", str(path)],
        check=True,
        capture_output=True,
    )


def reads(node: list[Any], pattern: int, at: str) -> bool:
    described: dict[str, Any] | None = None
    for layer in reversed(node):
        described = {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": str(layer.path)},
            "backing": described,
        }
    done = subprocess.run(
        ["qemu-io", "-r", "-c", f"read -P {pattern} {at}", f"json:{json.dumps(described)}"],
        capture_output=True,
        text=True,
    )
    return done.returncode == 0 and "verification failed" not in done.stdout


@pytest.fixture
async def digest(rooms: Rooms) -> str:
    """An image of 8 MiB whose every byte is 7."""
    raw, made = rooms.state.scratch / "raw", rooms.state.scratch / "qcow2"
    raw.write_bytes(b"\7" * 8 * MIB)
    if rooms.identity:
        os.chown(raw, rooms.identity.uid, rooms.identity.gid)
    await to_qcow2(rooms.processes, raw, "raw", made, owner="operation:x", identity=rooms.identity)
    image = await rooms.put(made, "seven", 8 * MIB)
    for name in ("one", "two"):
        rooms.state.vm(name).mkdir(mode=0o711)
    return str(image.digest)


async def make(rooms: Rooms, disk: Disk, copy_of: str | None = None) -> Path:
    await rooms.volumes.create(
        "one", disk, copy_of=copy_of, identity=rooms.identity, operation="x", progress=nothing
    )
    path = rooms.state.vm("one") / "disk0.qcow2"
    assert path.stat().st_mode & 0o777 == 0o600
    if rooms.identity:
        assert path.stat().st_uid == rooms.identity.uid
    assert [entry.name for entry in rooms.state.vm("one").iterdir()] == ["disk0.qcow2"]
    return Path(path)


async def test_a_thin_volume_shows_its_image(rooms: Rooms, digest: str) -> None:
    disk = Disk(id="disk0", volume="disk0", size=16 * MIB, image=digest)
    path = await make(rooms, disk)
    assert info(path)["virtual-size"] == 16 * MIB
    assert await rooms.volumes.stored_size("one", disk) < MIB
    chain = rooms.volumes.chain("one", disk)
    assert [layer.path for layer in chain] == [path, await rooms.images.path(digest)]
    write(path, 9, "1M 4k")
    assert reads(list(chain), 7, "0 1M")
    assert reads(list(chain), 9, "1M 4k")
    assert reads(list(chain), 0, "8M 8M")
    assert not reads(list(chain), 9, "0 1M")
    assert path == await make(rooms, disk), "again, replaced"
    assert reads(list(chain), 7, "1M 4k")


async def test_a_whole_copy_stands_alone(rooms: Rooms, digest: str) -> None:
    disk = Disk(id="disk0", volume="disk0", size=32 * MIB)
    seen: list[float] = []
    await rooms.volumes.create(
        "one",
        disk,
        copy_of=digest,
        identity=rooms.identity,
        operation="x",
        progress=lambda part, _: seen.append(part),
    )
    assert seen[-1] == 1.0
    path = rooms.state.vm("one") / "disk0.qcow2"
    assert "backing-filename" not in info(path)
    assert info(path)["virtual-size"] == 32 * MIB
    assert reads(list(rooms.volumes.chain("one", disk)), 7, "0 8M")


async def test_a_blank_volume(rooms: Rooms, digest: str) -> None:
    disk = Disk(id="disk0", volume="disk0", size=1024 * MIB)
    path = await make(rooms, disk)
    found = info(path)
    assert found["virtual-size"] == 1024 * MIB
    assert found["cluster-size"] == 128 * 1024
    assert found["format-specific"]["data"]["extended-l2"] is True


@pytest.mark.parametrize("whole", [False, True])
async def test_a_clone_holds_what_its_source_held(rooms: Rooms, digest: str, whole: bool) -> None:
    disk = Disk(id="disk0", volume="disk0", size=16 * MIB, image=digest)
    write(await make(rooms, disk), 9, "1M 4k")
    copy = disk.model_copy(update={"image": None}) if whole else disk
    await rooms.volumes.clone(
        "one", disk, "two", copy, identity=rooms.identity, operation="x", progress=nothing
    )
    path = rooms.state.vm("two") / "disk0.qcow2"
    assert ("backing-filename" in info(path)) is not whole
    chain = list(rooms.volumes.chain("two", copy))
    assert reads(chain, 9, "1M 4k")
    assert reads(chain, 7, "0 1M")
    assert reads(chain, 0, "8M 8M")
    write(path, 3, "2M 4k")
    assert reads(list(rooms.volumes.chain("one", disk)), 7, "2M 4k")
    if rooms.identity:
        assert path.stat().st_uid == rooms.identity.uid


async def test_a_planted_backing_name_is_not_followed(rooms: Rooms, digest: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x55" * MIB)
    disk = Disk(id="disk0", volume="disk0", size=16 * MIB, image=digest)
    path = await make(rooms, disk)
    await rooms.processes.run(
        ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(path)], owner="test"
    )
    assert info(path)["backing-filename"] == str(secret)
    copy = disk.model_copy(update={"image": None})
    await rooms.volumes.clone(
        "one", disk, "two", copy, identity=rooms.identity, operation="x", progress=nothing
    )
    assert reads(list(rooms.volumes.chain("two", copy)), 7, "0 8M")


async def test_missing_files_are_named(rooms: Rooms, digest: str) -> None:
    disk = Disk(id="disk0", volume="disk0", size=16 * MIB, image=digest)
    with pytest.raises(VolumeMissing):
        await rooms.volumes.require("one", disk)
    assert await rooms.volumes.stored_size("one", disk) == 0
    await make(rooms, disk)
    await rooms.volumes.require("one", disk)
    content = await rooms.images.path(digest)
    content.unlink()
    with pytest.raises(ImageChainBroken) as caught:
        await rooms.volumes.require("one", disk)
    assert caught.value.value == str(content)
    with pytest.raises(ImageNotFound):
        await make(rooms, disk)
    await rooms.volumes.delete("one", disk)
    await rooms.volumes.delete("one", disk)
    assert list(rooms.state.vm("one").iterdir()) == []


async def test_a_cancelled_copy_leaves_nothing(rooms: Rooms, digest: str) -> None:
    disk = Disk(id="disk0", volume="disk0", size=16 * MIB)
    begun = asyncio.Event()
    task = asyncio.ensure_future(
        rooms.volumes.create(
            "one", disk, copy_of=digest, identity=None, operation="x", progress=lambda *_: begun.set()
        )
    )
    await asyncio.wait_for(begun.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(rooms.state.vm("one").iterdir()) == []


async def test_a_source_that_is_not_what_it_says_fails(rooms: Rooms, digest: str) -> None:
    junk, target = rooms.state.scratch / "junk", rooms.state.scratch / "made"
    junk.write_bytes(b"not an image" * 1000)
    with pytest.raises(ConversionFailed) as caught:
        await to_qcow2(rooms.processes, junk, "qcow2", target, owner="operation:x")
    assert "qcow2" in caught.value.detail["log"]
    assert not target.exists()
