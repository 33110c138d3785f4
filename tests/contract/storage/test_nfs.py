"""NFS exports: what is refused in words, the exact commands, and lives of volumes where there is a server."""

import asyncio
import os
from pathlib import Path

import pytest
from storage_rooms import Rooms
from volume_life import io, live_through, nothing

from holdfast.host.processes import Completed, Processes
from holdfast.spec.pool import NfsPoolSpec, PoolCreate, PoolHealth
from holdfast.spec.units import MIB
from holdfast.spec.vm import Disk
from holdfast.storage.pools.nfs import NfsNotMounted, NfsPool
from holdfast.storage.pools.pool import PoolVanished
from holdfast.storage.pools.root import PoolPathTaken, RootMark

SPEC = NfsPoolSpec(server="127.0.0.1", export=Path("/no/such export"))


async def test_a_mount_that_fails_leaves_nothing(rooms: Rooms) -> None:
    with pytest.raises(NfsNotMounted) as caught:
        await rooms.pools.create(PoolCreate(name="nfs", spec=SPEC))
    assert caught.value.value == "127.0.0.1:/no/such export"
    assert [pool.name for pool in rooms.pools.all()] == ["local"]
    assert list((rooms.state.root / "mounts").iterdir()) == []


async def test_an_export_belongs_to_one_pool(rooms: Rooms) -> None:
    mark = RootMark("12345678-9", rooms.state.mark)
    rooms.pools.add(NfsPool("first", SPEC, mark, rooms.state.root, rooms.processes))
    with pytest.raises(PoolPathTaken):
        await rooms.pools.create(PoolCreate(name="second", spec=SPEC))
    assert [pool.name for pool in rooms.pools.all()] == ["local", "first"]


class RecordedMounts(Processes):
    """Mounts nothing; the kernel's list of mounts then says that it did."""

    def __init__(self, rooms: Rooms, table: Path) -> None:
        super().__init__(rooms.state)
        self.table = table
        self.asked: list[tuple[str, ...]] = []

    async def run(self, argv, **_):  # type: ignore[no-untyped-def]
        self.asked.append(tuple(argv))
        point = str(argv[-1]).replace(" ", "\\040")
        self.table.write_text(f"36 35 0:98 / {point} rw - nfs4 x rw\n" if argv[0] == "mount" else "")
        return Completed(0, b"", b"")


async def test_the_exact_commands(rooms: Rooms, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("22 1 0:20 / /sys rw - sysfs sysfs rw\n")
    programs = RecordedMounts(rooms, table)
    mark = RootMark("12345678-9", rooms.state.mark)
    pool = NfsPool("nfs", SPEC, mark, rooms.state.root, programs, table)
    root = str(rooms.state.root / "mounts" / "12345678")
    await pool.make()
    await pool.open()
    mount = (
        "mount",
        "-t",
        "nfs",
        "-o",
        "hard,nosuid,nodev,noexec,retry=0",
        "127.0.0.1:/no/such export",
        root,
    )
    assert programs.asked == [mount], "once"
    assert (await pool.state()).capacity
    await pool.unmake()
    assert programs.asked[1:] == [("umount", root)]
    assert not Path(root).exists()


needs_server = pytest.mark.skipif(
    "HOLDFAST_TEST_NFS" not in os.environ,
    reason="HOLDFAST_TEST_NFS names no empty export (tests/machines/test_nfs.py does, in a lab)",
)
needs_switch = pytest.mark.skipif(
    "HOLDFAST_TEST_NFS_SWITCH" not in os.environ, reason="nobody would stop and start the server"
)


def exported() -> NfsPoolSpec:
    server, _, path = os.environ["HOLDFAST_TEST_NFS"].partition(":")
    return NfsPoolSpec(server=server, export=Path(path))


def mounted() -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - nfs4 " in line]


async def switched(word: str) -> None:
    """Have the server started or stopped by whoever runs these tests (tests/guests/nfs_server.py)."""
    host, _, port = os.environ["HOLDFAST_TEST_NFS_SWITCH"].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{word}\n".encode())
    assert await reader.readline() == f"{word}\n".encode()
    writer.close()


@needs_server
async def test_a_life_on_a_real_server(rooms: Rooms) -> None:
    view = await rooms.pools.create(PoolCreate(name="nfs", spec=exported()))
    assert view.health is PoolHealth.AVAILABLE and view.capacity
    (line,) = mounted()
    assert {"nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
    assert "hard" in line.split(" - ")[1].split()[2].split(",")
    with pytest.raises(PoolPathTaken):
        await rooms.pools.create(PoolCreate(name="again", spec=exported()))
    await live_through(rooms, "nfs")
    await rooms.pools.refresh("nfs")
    assert len(mounted()) == 1
    await rooms.pools.delete("nfs")
    assert mounted() == []
    assert list((rooms.state.root / "mounts").iterdir()) == []
    with pytest.raises(NfsNotMounted):
        wrong = exported().model_copy(update={"export": Path("/none")})
        await rooms.pools.create(PoolCreate(name="none", spec=wrong))


@needs_server
@needs_switch
async def test_a_server_that_goes_away(rooms: Rooms) -> None:
    """A writer waits, nothing else does, and what it wrote is there."""
    await rooms.pools.create(PoolCreate(name="nfs", spec=exported()))
    pool, volumes = rooms.pools.of("nfs"), rooms.volumes
    disk = Disk(id="disk0", volume="disk0", size=32 * MIB, pool="nfs")
    made = {"copy_of": None, "identity": rooms.identity, "operation": "x", "progress": nothing}
    await volumes.create("one", disk, **made)
    chain = volumes.chain("one", disk)
    pieces = [f"write -P {number} {number}M 1M" for number in range(1, 25)]
    assert await io(chain, pieces[0], "flush", write=True)
    await switched("stop")
    writing = asyncio.create_task(asyncio.to_thread(asyncio.run, io(chain, *pieces[1:], "flush", write=True)))
    try:
        state = await asyncio.wait_for(pool.state(), 20)
        assert state.health is PoolHealth.VANISHED, state
        with pytest.raises(PoolVanished):
            await asyncio.wait_for(volumes.create("two", disk, **made), 30)
        assert (await asyncio.wait_for(rooms.pools.show("local"), 20)).health is PoolHealth.AVAILABLE
        await asyncio.sleep(10)
        assert not writing.done(), "it was to wait"
    finally:
        await switched("start")
    assert await asyncio.wait_for(writing, 300)
    async with asyncio.timeout(120):
        while (await pool.state()).health is not PoolHealth.AVAILABLE:
            await asyncio.sleep(1)
    assert await io(chain, *(piece.replace("write", "read") for piece in pieces))
    await volumes.delete("one", disk)
    await rooms.pools.delete("nfs")
    assert mounted() == []
