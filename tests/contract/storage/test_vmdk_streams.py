"""VMDKs in and out by processes without rights, beside what the real qemu-img makes and reads."""

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from storage_rooms import Rooms

from holdfast.host.space import NoSpace
from holdfast.spec.attachment import FilePlace, Layer
from holdfast.spec.units import MIB
from holdfast.spec.vm import VolumeFormat
from holdfast.storage import stream_work
from holdfast.storage.convert import VOLUME_OPTIONS
from holdfast.storage.formats.qcow2_writer import Qcow2Writer
from holdfast.storage.formats.reading import Reader
from holdfast.storage.formats.refusals import (
    DiskHoldsMoreThanPlanned,
    DiskLargerThanPlanned,
    ImageDamaged,
    ImageTruncated,
)
from holdfast.storage.formats.vmdk_writer import GRAIN, VmdkWriter, deflate
from holdfast.storage.stream_to_volume import Part, Unpacked, stream_to_volume
from holdfast.storage.volume_content import flatten
from holdfast.storage.volume_to_stream import Packed, volume_to_stream

SIZE = 48 * MIB + 4096 + 512
BEFORE = b"a descriptor and other members".ljust(1536, b"\0")


def nothing(_: float, __: str) -> None:
    pass


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with data of every kind: alike, random, sparse, and at its very end."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    source = random.Random(5)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at in range(0, 40 * MIB, 3 * MIB):
            file.seek(at + source.randrange(0, 64) * 512)
            file.write(source.randbytes(MIB // 2) + b"text " * 40_000)
        file.seek(SIZE - 700)
        file.write(source.randbytes(700))
    return path


@pytest.fixture(scope="module")
def vmdk(raw: Path) -> Path:
    """By qemu-img: its tables lie before the grains, and it has no end marker."""
    path = raw.with_suffix(".vmdk")
    options = ["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", *options, raw, path], check=True)
    return path


@pytest.fixture(scope="module")
def ours(raw: Path) -> Path:
    """By our writer: tables between the grains, directory and footer behind."""
    path = raw.with_name("ours.vmdk")
    with raw.open("rb") as disk, path.open("wb") as file:
        writer = VmdkWriter(lambda data: file.write(data) and None, SIZE, path.name, 3)
        for index in range(-(-SIZE // GRAIN)):
            data = disk.read(GRAIN)
            if any(data):
                writer.grain(index, deflate(data.ljust(GRAIN, b"\0")))
        writer.finish()
    return path


async def unpack(rooms: Rooms, vmdk: Path, target: Path, **more: Any) -> Unpacked:
    """Out of the middle of an archive."""
    archive = rooms.state.scratch / "x.ova"
    if not archive.exists():
        archive.write_bytes(BEFORE + vmdk.read_bytes() + b"manifest")
    fd = os.open(archive, os.O_RDONLY)
    wanted = {"volume_size": SIZE, "largest": 64 * MIB, "algorithms": ("sha256", "sha1"), **more}
    try:
        return await stream_to_volume(
            rooms.processes,
            Part(fd, len(BEFORE), vmdk.stat().st_size, "disk.vmdk"),
            target,
            owner="operation:x",
            identity=rooms.identity,
            progress=nothing,
            **wanted,
        )
    finally:
        os.close(fd)


def tool(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def same(raw: Path, made: Path, form: str) -> None:
    tool("qemu-img", "compare", "-q", "-f", "raw", "-F", form, raw, made)


def sound(volume: Path) -> None:
    tool("qemu-img", "check", "-q", "-f", "qcow2", volume)


@pytest.mark.parametrize("made", ["vmdk", "ours"])
async def test_a_stream_becomes_a_volume_out_of_an_archive(
    rooms: Rooms, raw: Path, made: str, request: pytest.FixtureRequest
) -> None:
    source, target = request.getfixturevalue(made), rooms.state.scratch / "volume"
    done = await unpack(rooms, source, target)
    sound(target)
    same(raw, target, "qcow2")
    assert target.stat().st_blocks * 512 < 20 * MIB  # what is zero takes no room
    assert done.digests["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert done.digests["sha1"] == hashlib.sha1(source.read_bytes()).hexdigest()
    assert done.memory < 200 * MIB
    assert target.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in rooms.state.scratch.iterdir()} == {"volume", "x.ova"}


async def test_a_volume_may_be_larger_than_the_disk(rooms: Rooms, vmdk: Path, raw: Path) -> None:
    target = rooms.state.scratch / "volume"
    await unpack(rooms, vmdk, target, volume_size=2 * 1024 * MIB)
    sound(target)
    same(raw, target, "qcow2")
    told = tool("qemu-img", "info", "-f", "qcow2", "--output=json", target)
    assert json.loads(told)["virtual-size"] == 2 * 1024 * MIB


@pytest.mark.parametrize(
    ("more", "refusal"),
    [
        ({"volume_size": SIZE - 512}, DiskLargerThanPlanned),
        ({"largest": 4 * MIB}, DiskHoldsMoreThanPlanned),
    ],
)
async def test_what_is_not_as_planned_is_refused(
    rooms: Rooms, vmdk: Path, more: dict[str, Any], refusal: type[Exception]
) -> None:
    target = rooms.state.scratch / "volume"
    with pytest.raises(refusal):
        await unpack(rooms, vmdk, target, **more)
    assert {path.name for path in rooms.state.scratch.iterdir()} == {"x.ova"}


async def test_a_full_disk_leaves_nothing(
    rooms: Rooms, vmdk: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await volume_of(rooms, raw)
    if rooms.identity:
        os.chown(base, rooms.identity.uid, rooms.identity.gid)
    # 4 MiB of room are left of 516 MiB, of which 512 are others'; the floor is 16 MiB.
    for module in (stream_to_volume, volume_to_stream):
        monkeypatch.setitem(vars(sys.modules[module.__module__]), "free_space", lambda _: (516 * MIB, 0))
        monkeypatch.setitem(vars(sys.modules[module.__module__]), "_FLOOR", MIB)
    with pytest.raises(NoSpace):
        await unpack(rooms, vmdk, rooms.state.scratch / "volume")
    with pytest.raises(NoSpace):
        await packed(rooms, [Layer.of_file(base, "qcow2")], rooms.state.scratch / "out.vmdk")
    assert {path.name for path in rooms.state.scratch.iterdir()} == {"x.ova", "base.qcow2"}


async def test_a_disk_compressed_1000_to_1_is_bounded_by_its_plan(rooms: Rooms) -> None:
    """256 MiB of one byte in 2 MiB of file: as planned it is written, in bounded memory."""
    size, source = 256 * MIB, rooms.state.scratch / "bomb.vmdk"
    packed_grain = deflate(b"\1" * GRAIN)
    with source.open("wb") as file:
        writer = VmdkWriter(lambda data: file.write(data) and None, size, "bomb.vmdk", 1)
        for index in range(size // GRAIN):
            writer.grain(index, packed_grain)
        writer.finish()
    assert source.stat().st_size < 4 * MIB
    target = rooms.state.scratch / "volume"
    with pytest.raises(DiskHoldsMoreThanPlanned):
        await unpack(rooms, source, target, volume_size=size)
    done = await unpack(rooms, source, target, volume_size=size, largest=2 * size)
    assert done.memory < 200 * MIB
    sound(target)


async def test_a_damaged_stream_leaves_nothing(rooms: Rooms, ours: Path) -> None:
    data = bytearray(ours.read_bytes())
    data[len(data) // 2] ^= 8
    bad = rooms.state.scratch / "bad.vmdk"
    bad.write_bytes(data)
    with pytest.raises(ImageDamaged):
        await unpack(rooms, bad, rooms.state.scratch / "volume")
    bad.write_bytes(data[: len(data) // 2])
    (rooms.state.scratch / "x.ova").unlink()
    with pytest.raises(ImageTruncated):
        await unpack(rooms, bad, rooms.state.scratch / "volume")
    assert {path.name for path in rooms.state.scratch.iterdir()} == {"x.ova", "bad.vmdk"}


async def test_a_cancelled_conversion_is_left_to_be_gone_on_with(rooms: Rooms, vmdk: Path, raw: Path) -> None:
    target = rooms.state.scratch / "volume"
    work = asyncio.ensure_future(unpack(rooms, vmdk, target))
    while not target.exists():
        await asyncio.sleep(0.001)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert rooms.processes.find() == []
    await unpack(rooms, vmdk, target)
    same(raw, target, "qcow2")
    assert {path.name for path in rooms.state.scratch.iterdir()} == {"volume", "x.ova"}


class Killed(Exception):
    pass


def order_for(vmdk: Path, folder: Path) -> stream_work.Order:
    flags = os.O_RDWR | os.O_CREAT
    return stream_work.Order(
        source=os.open(vmdk, os.O_RDONLY),
        offset=0,
        size=vmdk.stat().st_size,
        name="disk.vmdk",
        target=os.open(folder / "volume", flags, 0o600),
        direct=os.open(folder / "volume", os.O_WRONLY | os.O_DIRECT),
        key="ab" * 32,
        volume_size=SIZE,
        largest=64 * MIB,
        algorithms=("sha256",),
        parent=os.getppid(),
    )


def worked(order: stream_work.Order, last: int | None = None) -> dict[str, Any]:
    """`last`: it is killed once it has read so far."""

    def say(what: dict[str, Any]) -> None:
        if last is not None and what["position"] >= last:
            raise Killed

    with Reader.within(order.source, order.offset, order.size, order.name) as reader:
        return stream_work.Unpacking(order, reader, say).run()


@pytest.mark.parametrize("made", ["vmdk", "ours"])
def test_after_a_crash_it_goes_on_at_its_mark(
    tmp_path: Path, raw: Path, made: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: Path = request.getfixturevalue(made)
    monkeypatch.setattr(stream_work, "MARK_EVERY", 4 * MIB)
    monkeypatch.setattr(stream_work, "_SAY_EVERY", 0.0)
    order = order_for(source, tmp_path)
    for part in (3, 5, 6, 7):
        with pytest.raises(Killed):
            worked(order, order.size * part // 8)
        # Of what came after the mark anything may be there, or nothing.
        os.pwrite(order.target, random.Random(part).randbytes(MIB), os.fstat(order.target).st_size)
        assert (tmp_path / "volume").read_bytes()[:4] == bytes(4)
    done = worked(order)
    assert done["resumed_at"] > order.size // 2
    assert done["digests"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    sound(tmp_path / "volume")
    same(raw, tmp_path / "volume", "qcow2")


def test_a_mark_of_other_work_is_none(
    tmp_path: Path, raw: Path, vmdk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_work, "MARK_EVERY", 4 * MIB)
    monkeypatch.setattr(stream_work, "_SAY_EVERY", 0.0)
    order = order_for(vmdk, tmp_path)
    with pytest.raises(Killed):
        worked(order, order.size * 3 // 4)
    done = worked(replace(order, key="cd" * 32))
    assert done["resumed_at"] == 0
    sound(tmp_path / "volume")
    same(raw, tmp_path / "volume", "qcow2")


def test_a_disk_of_many_tables_is_written_in_bounded_memory(tmp_path: Path) -> None:
    """One grain in each of 200 stretches of 1 GiB, forwards and then backwards: tables come and go."""
    size = 200 * 1024 * MIB
    fd = os.open(tmp_path / "volume", os.O_RDWR | os.O_CREAT)
    writer = Qcow2Writer(fd, size, size)
    places = [each * 1024 * MIB for each in range(200)]
    for at in (*places, *(each + GRAIN for each in reversed(places))):
        writer.write([(at, at.to_bytes(8, "big") * (GRAIN // 8))])
    writer.finish()
    os.close(fd)
    sound(tmp_path / "volume")
    with Reader(tmp_path / "volume") as reader:
        assert reader.size < 100 * MIB
    for at in (places[3], places[150] + GRAIN):
        pattern = ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -v {at} 16", str(tmp_path / "volume")]
        shown = subprocess.check_output(pattern, text=True).splitlines()[0].split()[1:9]
        assert "".join(shown) == at.to_bytes(8, "big").hex()


async def packed(rooms: Rooms, layers: list[Layer], target: Path, size: int = SIZE) -> Packed:
    return await volume_to_stream(
        rooms.processes,
        layers,
        size,
        target,
        owner="operation:x",
        identity=rooms.identity,
        progress=nothing,
        algorithms=("sha256",),
    )


async def volume_of(rooms: Rooms, raw: Path) -> Path:
    path, source = rooms.state.scratch / "base.qcow2", rooms.state.scratch / "source"
    source.write_bytes(raw.read_bytes())
    layers = [Layer.of_file(source, "raw")]
    form = VolumeFormat.QCOW2
    await flatten(rooms.processes, layers, FilePlace(path=path), SIZE, form, owner="operation:x")
    source.unlink()
    return path


async def test_a_chain_becomes_a_stream_that_others_read(rooms: Rooms, raw: Path) -> None:
    base, top = await volume_of(rooms, raw), rooms.state.scratch / "top.qcow2"
    flat, target = rooms.state.scratch / "flat.raw", rooms.state.scratch / "out.vmdk"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", VOLUME_OPTIONS, "-b", base, "-F", "qcow2", top)
    write = ["-c", "write -P 3 12k 8k", "-c", "write -z 3M 1M", "-c", "write -P 9 47M 4k"]
    tool("qemu-io", "-f", "qcow2", *write, top)
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, flat)
    if rooms.identity:
        for path in (base, top):
            os.chown(path, rooms.identity.uid, rooms.identity.gid)
    done = await packed(rooms, [Layer.of_file(top, "qcow2"), Layer.of_file(base, "qcow2")], target)
    same(flat, target, "vmdk")
    tool("qemu-img", "check", "-q", "-f", "vmdk", target)
    assert done.digests["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    assert done.size == target.stat().st_size
    assert done.memory < 200 * MIB

    back = rooms.state.scratch / "back"
    (rooms.state.scratch / "x.ova").unlink(missing_ok=True)
    await unpack(rooms, target, back)
    sound(back)
    same(flat, back, "qcow2")


async def test_a_blank_disk_becomes_a_stream_without_grains(rooms: Rooms) -> None:
    blank, target = rooms.state.scratch / "blank", rooms.state.scratch / "out.vmdk"
    blank.write_bytes(b"")
    os.truncate(blank, 10 * MIB)
    if rooms.identity:
        os.chown(blank, rooms.identity.uid, rooms.identity.gid)
    done = await packed(rooms, [Layer.of_file(blank, "raw")], target, 10 * MIB)
    assert done.size < 128 * 1024
    same(blank, target, "vmdk")
