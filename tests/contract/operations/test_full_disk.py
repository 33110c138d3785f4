"""A disk that runs full while operations are under way: none is left in the middle."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.host.reserve import RESERVED, SpaceReserve
from holdfast.host.space import NoSpace, free_space
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.operation import OperationState

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system of its own")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


class FillDisk:
    """Takes the last byte of the disk, as somebody else would: its undo gives nothing back."""

    title = "fill the disk"
    weight = 1.0

    async def do(self, job: Job) -> None:
        with contextlib.suppress(OSError), Path(job.params["filler"]).open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        raise NoSpace("it is full", value=0)

    async def undo(self, job: Job) -> None:
        await self.catalog.write(lambda session: session.connection().exec_driver_sql(self.large))

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.large = f"INSERT INTO facts VALUES ('{'x' * 4096}', '{{}}') ON CONFLICT DO NOTHING"


async def begin(disk: Path, reserve: SpaceReserve | None) -> tuple[Operations, Catalog, str]:
    catalog = Catalog.open(disk / "catalog", reserve)
    operations = Operations(catalog, EventLog(catalog), disk / "operations", reserve, idle_poll=0.05)
    operations.register(Procedure("fill", (FillDisk(catalog),)))
    await operations.launch()
    begun = await operations.submit("fill", "x", {"filler": str(disk / "filler")}, "test")
    return operations, catalog, begun.id


async def test_the_reserve_lets_an_operation_be_undone_on_a_full_disk(disk: Path) -> None:
    reserve = SpaceReserve(disk / "reserve")
    reserve.keep()
    assert (disk / "reserve").stat().st_size == RESERVED
    operations, catalog, begun = await begin(disk, reserve)
    ended = await asyncio.wait_for(operations.wait(begun), 60)
    assert ended.state is OperationState.FAILED and ended.error and ended.error["id"] == "no-space"
    assert not (disk / "reserve").exists()
    reserve.keep()
    assert not (disk / "reserve").exists(), "a full disk is left to its users"
    (disk / "filler").unlink()
    reserve.keep()
    assert (disk / "reserve").exists() and reserve.give_up() and not reserve.give_up()
    await operations.close()
    catalog.close()


async def test_without_reserve_an_operation_waits_until_there_is_room(disk: Path) -> None:
    operations, catalog, begun = await begin(disk, None)
    deadline = asyncio.get_running_loop().time() + 30
    while free_space(disk)[0]:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(operations.wait(begun)), 5)
    (disk / "filler").unlink()
    ended = await asyncio.wait_for(operations.wait(begun), 60)
    assert ended.state is OperationState.FAILED and ended.error and ended.error["id"] == "no-space"
    await operations.close()
    catalog.close()
