"""The process that ships, with a real QEMU and a real receiver: asked, cancelled, killed, begun again."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from held_in_memory import Arriving, Held
from test_capture import DISKS, SIZE, Rig, rig
from test_link import Pair

from holdfast.replication.dispatch import Dispatch, DispatchedLink
from holdfast.replication.link import LinkLost, TlsLink
from holdfast.replication.moving import Moving
from holdfast.replication.receiving import serve
from holdfast.replication.shipping import Shipped
from holdfast.replication.wire import Begin, DiskShape, Open
from holdfast.spec.errors import RemoteError

__all__ = ["rig"]
SHAPES = tuple(DiskShape(id=disk, size=SIZE) for disk in DISKS)
ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


class Ends:
    def __init__(self, rig: Rig, folder: Path) -> None:
        folder.mkdir()
        self.rig = rig
        self.pair = Pair(folder)
        self.held = Held(SHAPES)
        self.hung, self.reached = threading.Event(), threading.Event()
        self.dispatch = Dispatch(rig.processes)
        self.link: DispatchedLink = self.dispatch.link()

    async def connect(self, *, hang: bool = False) -> None:
        def receiver(link: TlsLink) -> None:
            if hang:
                self.reached.set()
                self.hung.wait(60)
            serve(link, "south", lambda _: self.held)

        self.pair.receive(receiver)
        opened = Open(replication=ID, vm=ID, name="web", disks=SHAPES)
        pair = self.pair
        standing = await self.link.connect(
            pair.address, pair.source, pair.receiver.fingerprint, "north", opened
        )
        self.rig.replica.held = standing.cycle

    async def cycle(self) -> Shipped:
        captured = await self.rig.begin()
        try:
            shipped = await self.link.ship(captured, self.rig.replica.held, {"spec": b"\0\xff" * 1000})
        except BaseException:
            await self.rig.capture.give_up()
            raise
        await self.rig.capture.commit(captured.cycle)
        self.rig.replica.held = captured.cycle
        return shipped

    def worker(self) -> int:
        return self.rig.processes.find(role="replica-worker")[0].ref.pid


@pytest.fixture
async def ends(rig: Rig, tmp_path: Path) -> AsyncIterator[Ends]:
    await rig.capture.attach(None)
    made = Ends(rig, tmp_path / "ends")
    yield made
    await made.dispatch.close()
    assert not rig.processes.find(role="replica-worker")
    await asyncio.to_thread(made.pair.close)


async def test_a_worker_that_is_killed_is_begun_again(ends: Ends) -> None:
    await ends.rig.write("disk0", 3, "0", "1M")
    await ends.connect()
    assert (await ends.cycle()).written == 1 << 20
    assert ends.held.attachments == {"spec": b"\0\xff" * 1000}
    first = ends.worker()
    os.kill(first, signal.SIGKILL)
    await ends.rig.write("disk0", 4, "0", "64k")
    with pytest.raises((LinkLost, RemoteError)) as caught:
        await ends.cycle()
    assert "replica-link-lost" in (caught.value.id, getattr(caught.value, "wire_id", ""))
    await ends.connect()
    assert ends.worker() != first
    assert (await ends.cycle()).written == 64 << 10
    ends.rig.replica.disks = ends.held.images
    await ends.rig.require_current()


async def test_how_far_a_cycle_is_comes_from_the_worker(ends: Ends) -> None:
    pair = ends.pair
    pair.receive(lambda link: serve(link, "south", lambda _: ends.held))
    opened = Open(replication=ID, vm=ID, name="web", disks=SHAPES)
    connected = (pair.address, pair.source, pair.receiver.fingerprint, "north", opened)
    await ends.link.connect(*connected, limit="800kB/s")
    await ends.rig.write("disk0", 7, "0", "6M")
    told = list[Moving]()
    captured = await ends.rig.begin()
    await ends.link.ship(captured, 0, {}, told=told.append)
    assert told and 0 < told[-1].done <= told[-1].total == 2 * SIZE
    await ends.rig.capture.commit(captured.cycle)


async def test_a_peer_that_hangs_is_left_and_the_link_of_use_again(ends: Ends) -> None:
    hanging = asyncio.ensure_future(ends.connect(hang=True))
    assert await asyncio.to_thread(ends.reached.wait, 30)
    await asyncio.sleep(0.2)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    await ends.connect()
    await ends.rig.write("disk0", 3, "0", "1M")
    await ends.cycle()
    ends.hung.set()
    ends.rig.replica.disks = ends.held.images
    await ends.rig.require_current()


async def test_a_cycle_that_is_cancelled_leaves_nothing_in_the_machine(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ends.connect()
    begin = ends.held.begin

    def slow(cycle: Begin) -> Arriving:
        ends.hung.wait(60)
        return begin(cycle)

    monkeypatch.setattr(ends.held, "begin", slow)
    await ends.rig.write("disk0", 3, "0", "6M")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await ends.cycle()
    await ends.rig.require_clean()
    ends.hung.set()
    await ends.connect()  # the cycle may have arrived whole all the same
    await ends.cycle()
    ends.rig.replica.disks = ends.held.images
    await ends.rig.require_current()


async def test_a_peer_that_is_not_there_is_said_to_be_lost(ends: Ends) -> None:
    ends.pair.door.close()
    with pytest.raises(RemoteError) as caught:
        await ends.connect()
    assert caught.value.wire_id == "replica-nobody-listens"
