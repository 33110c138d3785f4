"""One suite for every kind of pool that can run here: a directory as it is, on ext4 and on XFS."""

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loop_files import LoopFile
from sqlalchemy.orm import Session
from storage_rooms import Rooms
from volume_life import io, live_through

from holdfast.catalog.tables import PoolRow
from holdfast.host.files import can_share
from holdfast.host.space import NoSpace
from holdfast.spec.attachment import FilePlace, Layer
from holdfast.spec.errors import HoldfastError
from holdfast.spec.paging import PageQuery
from holdfast.spec.pool import LOCAL, DirectoryPoolSpec, PoolCreate, PoolHealth
from holdfast.spec.vm import Disk, VolumeFormat
from holdfast.storage.pools import directory
from holdfast.storage.pools.book import PoolExists, PoolInUse, PoolNotFound, Pools
from holdfast.storage.pools.directory import DirectoryPool
from holdfast.storage.pools.pool import BadVolumeName, PoolState, PoolVanished, VolumeId
from holdfast.storage.volume_content import flatten

MIB = 1 << 20
KINDS = ("directory", "ext4", "xfs")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems of its own")


def nothing(_: float, __: str) -> None:
    pass


@pytest.fixture(
    params=[pytest.param(kind, marks=needs_root if kind != "directory" else ()) for kind in KINDS]
)
async def root(request: pytest.FixtureRequest, rooms: Rooms) -> AsyncIterator[Path]:
    """An empty directory of one kind."""
    kind, folder = request.param, rooms.state.root.parent
    if kind == "directory":
        (folder / "pool").mkdir(mode=0o755)
        yield folder / "pool"
        return
    if kind == "xfs" and not shutil.which("mkfs.xfs"):
        pytest.skip("needs xfsprogs")
    loop = LoopFile.make(folder, kind, (320 if kind == "xfs" else 128) * MIB)
    try:
        yield loop.root
    finally:
        loop.unmount()


def request_of(path: Path, name: str = "Fast", format: VolumeFormat = VolumeFormat.QCOW2) -> PoolCreate:
    return PoolCreate(name=name, spec=DirectoryPoolSpec(path=path, format=format))


async def test_the_life_of_volumes(rooms: Rooms, root: Path) -> None:
    """Blank, layered, cloned, carried over, grown, renamed, removed: each step's content verified."""
    pool = await rooms.pools.create(request_of(root))
    assert (pool.health, pool.target, pool.volumes) == (PoolHealth.AVAILABLE, str(root), ())
    assert pool.capacity and pool.free and pool.used is not None and pool.used < pool.capacity
    await live_through(rooms, "fast")
    assert {entry.name for entry in root.iterdir()} <= {".holdfast-pool", "lost+found"}
    await rooms.pools.delete("FAST")
    assert {entry.name for entry in root.iterdir()} <= {"lost+found"}


@pytest.mark.parametrize("root", ["xfs"], indirect=True)
@needs_root
async def test_a_copy_takes_no_room_where_there_are_reflinks(rooms: Rooms, root: Path) -> None:
    await rooms.pools.create(request_of(root))
    disk = Disk(id="disk0", volume="disk0", size=256 * MIB, pool="Fast")
    await rooms.volumes.create("one", disk, copy_of=None, identity=None, operation="x", progress=nothing)
    assert await io(rooms.volumes.chain("one", disk), "write -P 5 0 96M", write=True)
    before = (await rooms.pools.show("Fast")).used
    for name in ("two", "three", "four"):
        await rooms.volumes.clone("one", disk, name, disk, identity=None, operation="x", progress=nothing)
        assert await io(rooms.volumes.chain(name, disk), "read -P 5 0 96M")
    after = (await rooms.pools.show("Fast")).used
    assert before is not None and after is not None and after - before < 16 * MIB


@pytest.mark.parametrize("root", ["xfs"], indirect=True)
@needs_root
async def test_the_base_of_a_replica_takes_no_room_where_there_are_reflinks(rooms: Rooms, root: Path) -> None:
    await rooms.pools.create(request_of(root))
    disk = Disk(id="disk0", volume="disk0", size=256 * MIB, pool="Fast")
    await rooms.volumes.create("one", disk, copy_of=None, identity=None, operation="x", progress=nothing)
    chain = rooms.volumes.chain("one", disk)
    assert await io(chain, "write -P 5 0 96M", write=True)
    below = chain[0].place
    assert isinstance(below, FilePlace) and can_share(below.path, root)
    assert not can_share(below.path, rooms.state.root)
    before = (await rooms.pools.show("Fast")).used
    base = FilePlace(path=root / "base")
    await flatten(
        *(rooms.processes, chain, base, disk.size, VolumeFormat.RAW), owner="operation:x", share_blocks=True
    )
    after = (await rooms.pools.show("Fast")).used
    assert before is not None and after is not None and after - before < 16 * MIB
    assert await io(chain, "write -P 6 0 1M", write=True)
    assert await io([Layer(place=base, format="raw")], "read -P 5 0 96M", "read -P 0 96M 160M")


async def test_raw_volumes(rooms: Rooms, root: Path) -> None:
    await rooms.pools.create(request_of(root, format=VolumeFormat.RAW))
    assert rooms.pools.of("fast").format is VolumeFormat.RAW
    disk = Disk(id="disk0", volume="disk0", size=64 * MIB, pool="Fast", format=VolumeFormat.RAW)
    await rooms.volumes.create("one", disk, copy_of=None, identity=None, operation="x", progress=nothing)
    assert (root / "one/disk0.raw").stat().st_size == 64 * MIB
    assert await rooms.volumes.stored_size("one", disk) <= 2 * MIB
    assert await io(rooms.volumes.chain("one", disk), "write -P 5 0 1M", write=True)
    layer = await rooms.volumes.create_overlay("one", disk, "disk0-1", identity=None, operation="x")
    assert await io([layer, *rooms.volumes.chain("one", disk)], "read -P 5 0 1M")
    layered = disk.model_copy(update={"volume": "disk0-1", "below": ("disk0",)})
    await rooms.volumes.clone("one", layered, "two", disk, identity=None, operation="x", progress=nothing)
    assert (root / "two/disk0.raw").stat().st_size == 64 * MIB
    assert await io(rooms.volumes.chain("two", disk), "read -P 5 0 1M", "read -P 0 1M 63M")


@pytest.mark.parametrize("root", ["ext4"], indirect=True)
@needs_root
async def test_no_room(rooms: Rooms, root: Path) -> None:
    await rooms.pools.create(request_of(root))
    disk = Disk(id="disk0", volume="disk0", size=64 * MIB)
    rooms.state.vm("one").mkdir()
    await rooms.volumes.create("one", disk, copy_of=None, identity=None, operation="x", progress=nothing)
    assert await io(rooms.volumes.chain("one", disk), "write -P 5 0 48M", write=True)
    filler = root / "lost+found" / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(root).f_bavail * os.statvfs(root).f_frsize - 20 * MIB)
    assert (await rooms.pools.show("Fast")).health is PoolHealth.AVAILABLE
    with pytest.raises((NoSpace, OSError)):
        await rooms.volumes.copy_layer(
            "one", disk, "disk0", "Fast", identity=None, operation="x", progress=nothing
        )
    assert await rooms.volumes.listed("one", "Fast") == []
    with filler.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, filler.stat().st_size + 20 * MIB - 256 * 1024)
    assert (await rooms.pools.show("Fast")).health is PoolHealth.FULL


@pytest.mark.parametrize("root", ["ext4"], indirect=True)
@needs_root
async def test_a_pool_that_is_gone(rooms: Rooms, root: Path) -> None:
    loop = LoopFile(root.parent / "ext4.img", root)
    await rooms.pools.create(request_of(root))
    disk = Disk(id="disk0", volume="disk0", size=8 * MIB, pool="Fast")
    await rooms.volumes.create("one", disk, copy_of=None, identity=None, operation="x", progress=nothing)
    for away, back in (
        (loop.unmount, loop.mount),
        (lambda: loop.remount("ro"), lambda: loop.remount("rw")),
    ):
        away()
        found = await rooms.pools.show("Fast")
        assert (found.health, found.free, found.volumes) == (PoolHealth.VANISHED, None, ())
        assert str(root) in found.reason
        for attempt in (
            rooms.volumes.require("one", disk),
            rooms.volumes.delete("one", disk),
            rooms.volumes.rename("one", "two", [disk]),
            rooms.volumes.create("two", disk, copy_of=None, identity=None, operation="x", progress=nothing),
        ):
            with pytest.raises(PoolVanished):
                await attempt
        assert not (root / "two").exists(), "nothing is written beneath"
        back()
        await rooms.volumes.require("one", disk)


@pytest.mark.parametrize("root", ["directory"], indirect=True)
async def test_a_pool_that_hangs(rooms: Rooms, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server that is gone: nothing is begun in it, nothing cleared up there, and others are served."""
    await rooms.pools.create(request_of(root))
    disk = Disk(id="disk0", volume="disk0", size=4 * MIB, pool="Fast")
    back = threading.Event()
    looked, unlinked = DirectoryPool._look, Path.unlink

    def look(pool: DirectoryPool) -> PoolState:
        assert pool.name == LOCAL or back.wait(60)
        return looked(pool)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        assert root not in path.parents or back.wait(60)
        unlinked(path, missing_ok)

    monkeypatch.setattr(DirectoryPool, "_look", look)
    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(directory, "_PATIENCE", 0.2)
    made = {"copy_of": None, "identity": None, "operation": "x", "progress": nothing}
    try:
        tries = [rooms.volumes.create(f"vm{number}", disk, **made) for number in range(20)]
        told = await asyncio.wait_for(asyncio.gather(*tries, return_exceptions=True), 20)
        assert {type(each) for each in told} == {PoolVanished}
        states = {pool.name: pool.health for pool in (await rooms.pools.list(PageQuery())).items}
        assert states == {"local": PoolHealth.AVAILABLE, "Fast": PoolHealth.VANISHED}
    finally:
        back.set()
    while (await rooms.pools.show("Fast")).health is PoolHealth.VANISHED:
        pass
    await rooms.volumes.create("vm", disk, **made)
    await rooms.volumes.delete("vm", disk)


@pytest.mark.parametrize("root", ["directory"], indirect=True)
async def test_bad_requests(rooms: Rooms, root: Path) -> None:
    folder = root.parent
    link = folder / "link"
    link.symlink_to(root)
    file = folder / "file"
    file.touch()
    open_to_all, foreign, filled = folder / "open", folder / "foreign", folder / "filled"
    for each in (open_to_all, foreign, filled):
        each.mkdir(mode=0o755)
    open_to_all.chmod(0o777)
    if os.geteuid() == 0:
        os.chown(foreign, 64321, 64321)
    (filled / "x").touch()
    refused = [
        (folder / "missing", "pool-path-unusable"),
        (link, "pool-path-unusable"),
        (file, "pool-path-unusable"),
        (open_to_all, "pool-path-unusable"),
        *([(foreign, "pool-path-unusable")] if os.geteuid() == 0 else []),
        (rooms.state.root, "pool-path-unusable"),
        (rooms.state.keys, "pool-path-unusable"),
        (folder, "pool-path-unusable"),
        (filled, "pool-path-not-empty"),
    ]
    for path, id_ in refused:
        with pytest.raises(HoldfastError) as caught:
            await rooms.pools.create(request_of(path))
        assert (caught.value.id, caught.value.value) == (id_, str(path))
        assert caught.value.cure
    await rooms.pools.create(request_of(root))
    with pytest.raises(PoolExists):
        await rooms.pools.create(request_of(folder / "filled", "fast"))
    with pytest.raises(PoolExists):
        await rooms.pools.create(request_of(folder / "filled", "LOCAL"))
    inner = root / "inner"
    inner.mkdir()
    for path in (root, inner):
        with pytest.raises(HoldfastError) as caught:
            await rooms.pools.create(request_of(path, "other"))
        assert caught.value.id == "pool-path-taken"
    with pytest.raises(PoolNotFound):
        rooms.volumes.chain("one", Disk(id="disk0", volume="disk0", size=MIB, pool="nowhere"))
    with pytest.raises(PoolInUse):
        await rooms.pools.delete("local")
    for name in ("../x", "a/b", "", "-rf", "X", "x\n", "x" * 64, "/etc/passwd"):
        with pytest.raises(BadVolumeName):
            VolumeId("one", name)


@pytest.mark.parametrize("root", ["directory"], indirect=True)
async def test_records_are_read_again_and_a_used_pool_stays(rooms: Rooms, root: Path) -> None:
    disk = Disk(id="disk0", volume="disk0", size=8 * MIB, pool="Fast")

    class Use:
        def disks_in(self, _: Session, pool: str | None) -> list[tuple[str, Disk]]:
            return [("one", disk)] if pool == "Fast" else []

    await rooms.pools.create(request_of(root))
    await rooms.volumes.create("one", disk, copy_of=None, identity=None, operation="x", progress=nothing)
    again = Pools(rooms.catalog, rooms.events, rooms.state, rooms.processes, Use())
    await again.open()
    view = await again.show("fast")
    assert (view.name, view.provisioned) == ("Fast", 8 * MIB)
    assert [(each.vm, each.disk, each.names) for each in view.volumes] == [("one", "disk0", ("disk0",))]
    assert view.volumes[0].used
    page = await again.list(PageQuery(sort="-provisioned"))
    assert [each.name for each in page.items] == ["Fast", "local"]
    with pytest.raises(PoolInUse) as caught:
        await again.delete("Fast")
    assert caught.value.detail == {"vms": ["one"]}
    # What a crash left between the mark and the record is taken over; another daemon's is not.
    await rooms.catalog.write(lambda session: session.delete(session.get_one(PoolRow, "Fast")))
    shutil.rmtree(root / "one")
    fresh = Pools(rooms.catalog, rooms.events, rooms.state, rooms.processes)
    await fresh.open()
    (root / ".holdfast-pool").write_text('{"pool": "x", "state": "of another"}')
    with pytest.raises(HoldfastError) as taken:
        await fresh.create(request_of(root))
    assert taken.value.id == "pool-path-taken"
    (root / ".holdfast-pool").write_text(f'{{"pool": "x", "state": "{rooms.state.mark}"}}')
    assert (await fresh.create(request_of(root))).health is PoolHealth.AVAILABLE
    kinds = [event.kind for event in await rooms.events.recent(10)]
    assert kinds == ["pool.created", "pool.created"]


def second_writer(path: Path) -> str:
    """What is said to who writes to a volume that somebody else has open."""
    program = ["qemu-io", "-f", "qcow2"]
    with subprocess.Popen([*program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdin and first.stdout
        first.stdin.write(b"write -P 1 0 4k\n")
        first.stdin.flush()
        first.stdout.readline()
        second = subprocess.run([*program, "-c", "write -P 2 0 4k", path], capture_output=True, text=True)
        first.stdin.close()
    return second.stderr


async def test_two_writers_of_one_volume_are_kept_apart(rooms: Rooms, root: Path) -> None:
    await rooms.pools.create(request_of(root))
    disk = Disk(id="disk0", volume="disk0", size=8 * MIB, pool="Fast")
    await rooms.volumes.create("one", disk, copy_of=None, identity=None, operation="x", progress=nothing)
    assert "lock" in second_writer(rooms.volumes.chain("one", disk)[0].path)
    assert await io(rooms.volumes.chain("one", disk), "read -P 1 0 4k")
