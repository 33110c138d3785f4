"""NFS exports where there is no server: the mount is refused in words, and nothing is left of it."""

from pathlib import Path

import pytest
from storage_rooms import Rooms

from holdfast.host.processes import Completed, Processes
from holdfast.spec.pool import NfsPoolSpec, PoolCreate
from holdfast.storage.pools.nfs import NfsNotMounted, NfsPool
from holdfast.storage.pools.root import RootMark

SPEC = NfsPoolSpec(server="127.0.0.1", export=Path("/no/such export"))


async def test_a_mount_that_fails_leaves_nothing(rooms: Rooms) -> None:
    with pytest.raises(NfsNotMounted) as caught:
        await rooms.pools.create(PoolCreate(name="nfs", spec=SPEC))
    assert caught.value.value == "127.0.0.1:/no/such export"
    assert [pool.name for pool in rooms.pools.all()] == ["local"]
    assert list((rooms.state.root / "mounts").iterdir()) == []


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
