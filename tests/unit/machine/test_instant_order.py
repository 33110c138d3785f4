"""What QEMU is told of an instant, and in which order: it takes commands as they come."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any, cast

from holdfast.machine.disk_layers import DiskLayers
from holdfast.machine.instant import Instant
from holdfast.qmp.errors import QmpTimedOut


class Session:
    """Keeps what it is told; answers at once, and reports nothing."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.block_graph = asyncio.Lock()

    async def execute(self, command: str, arguments: Any = None, limit: float = 30.0) -> Any:
        self.told.append(command)
        return {}

    @asynccontextmanager
    async def listen(self, *names: str) -> Any:
        yield self

    async def get(self, limit: float) -> Any:
        raise QmpTimedOut("nothing")


class Snapshots:
    """There are none."""

    @asynccontextmanager
    async def between_cycles(self) -> Any:
        yield


def instant(session: Session) -> Instant:
    told = cast(Any, session)
    return Instant(told, cast(Any, None), DiskLayers(told, io_uring=False), cast(Any, Snapshots()))


async def test_the_guest_stands_still_before_and_goes_on_after_the_switch() -> None:
    session = Session()
    stall = await instant(session).of_disks({"a": "b"}, None, runs=True)
    assert session.told[:3] == ["stop", "transaction", "cont"] and stall.seconds is None


async def test_what_is_copied_is_copied_between() -> None:
    session = Session()

    async def copy() -> None:
        assert "stop" in session.told and "cont" not in session.told
        session.told.append("copied")

    await instant(session).of_disks({"a": "b"}, copy, runs=True)
    assert session.told == ["stop", "transaction", "copied", "cont"]


async def test_a_guest_that_was_paused_stays_so() -> None:
    session = Session()
    await instant(session).of_disks({"a": "b"}, None, runs=False)
    assert session.told == ["stop", "transaction"]
