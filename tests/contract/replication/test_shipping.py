"""From a real QEMU over real TLS to a receiver: what arrives is the instant that was captured."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from held_in_memory import Held
from test_capture import DISKS, SIZE, Guest, Rig, numbers, rig
from test_link import Pair

from holdfast.replication import moving, shipping
from holdfast.replication.comparing import compare
from holdfast.replication.link import LinkLost, TlsLink, greet
from holdfast.replication.moving import Moving, Phase
from holdfast.replication.nbd import Source, SourceLost
from holdfast.replication.receiving import serve
from holdfast.replication.shipping import Shipped, Shipper, open_vm
from holdfast.replication.wire import DiskShape, Open, PeerRefused
from holdfast.spec.errors import Insufficient

__all__ = ["rig"]
SHAPES = tuple(DiskShape(id=disk, size=SIZE) for disk in DISKS)
ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


class Ends:
    """Both ends of a replication, the receiver's in a thread."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        folder.mkdir()
        self.rig = rig
        self.pair = Pair(folder)
        self.held = Held(SHAPES)
        self.connect()

    def connect(self) -> None:
        self.served: Future[None] = self.pair.receive(lambda link: serve(link, "south", lambda _: self.held))
        self.link: TlsLink = self.pair.connect()
        greet(self.link, "north")
        standing = open_vm(self.link, Open(replication=ID, vm=ID, name="web", disks=SHAPES))
        self.rig.replica.held = standing.cycle
        self.shipper = Shipper(self.link)

    async def cycle(self, between: Callable[[], None] = lambda: None) -> Shipped:
        captured = await self.rig.begin()
        between()
        base = self.rig.replica.held
        attachments = {"spec": b"%d" % captured.cycle}
        try:
            shipped = await asyncio.to_thread(self.shipper.ship, captured, base, attachments)
        except Exception:
            await self.rig.capture.give_up()
            raise
        await self.rig.capture.commit(captured.cycle)
        self.rig.replica.held = captured.cycle
        return shipped

    async def require_current(self) -> None:
        self.rig.replica.disks = self.held.images
        await self.rig.require_current()


@pytest.fixture
async def ends(rig: Rig, tmp_path: Path) -> AsyncIterator[Ends]:
    await rig.capture.attach(None)
    made = await asyncio.to_thread(Ends, rig, tmp_path / "ends")
    yield made
    made.link.close()
    await asyncio.to_thread(made.pair.close)


async def test_every_cycle_that_arrives_is_of_one_instant(ends: Ends) -> None:
    writing = asyncio.create_task(Guest(ends.rig).write_on())
    seen = []
    for _ in range(8):
        await ends.cycle()
        assert ends.held.attachments["spec"] == b"%d" % ends.held.cycle
        first, second = (numbers(ends.held.images[disk]) for disk in DISKS)
        assert first - second in (0, 1, -249), (first, second)
        seen.append(first)
    writing.cancel()
    await asyncio.wait({writing})
    assert len(set(seen)) > 4
    await ends.cycle()
    await ends.require_current()


async def test_zeroes_and_what_is_unchanged_are_not_sent(ends: Ends) -> None:
    rig = ends.rig
    await rig.write("disk0", 1, "0", "4M")
    first = await ends.cycle()
    assert (first.written, first.zeroed) == (4 << 20, 0)
    assert first.sent < (4 << 20) + 4096
    await rig.write("disk0", 0, "1M", "2M")
    await rig.write("disk1", 0, "0", "64k")
    second = await ends.cycle()
    assert (second.written, second.zeroed) == (0, (2 << 20) + (64 << 10))
    assert second.sent < 1024
    third = await ends.cycle()
    assert (third.written, third.zeroed) == (0, 0)
    await ends.require_current()


async def test_a_disk_whose_map_is_lost_is_compared_and_only_what_differs_sent(ends: Ends) -> None:
    rig = ends.rig
    await rig.write("disk0", 1, "0", "1M")
    await rig.write("disk1", 1, "0", "1M")
    await ends.cycle()
    await rig.restart(kill=True)
    await rig.write("disk0", 0, "0", "512k")
    await rig.write("disk1", 7, "5M", "12k")
    assert await rig.capture.attach(None) == {"disk0": None, "disk1": None}
    shipped = await ends.cycle()
    assert (shipped.written, shipped.zeroed, shipped.compared) == (12 << 10, 512 << 10, 2 * SIZE)
    assert not shipped.full
    assert shipped.sent < 16 << 10
    await ends.require_current()


async def test_how_far_a_cycle_is_is_told(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "EACH_SECONDS", 0.0)
    told = list[Moving]()
    ends.shipper = Shipper(ends.link, told=told.append)
    await ends.rig.write("disk0", 1, "0", "1M")
    await ends.rig.write("disk1", 1, "2M", "2M")
    await ends.cycle()
    assert {(each.phase, each.total) for each in told} == {(Phase.COPYING, 2 * SIZE)}
    done = [each.done for each in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (1 << 20, SIZE + (4 << 20))
    told.clear()
    await ends.rig.write("disk0", 2, "0", "1M")
    await ends.cycle()
    assert (told[-1].phase, told[-1].done, told[-1].sent > 0) == (Phase.CHANGES, 1 << 20, True)
    await ends.rig.restart(kill=True)
    await ends.rig.capture.attach(None)
    told.clear()
    await ends.cycle()
    assert told[-1] == Moving(phase=Phase.COMPARING, done=2 * SIZE, total=2 * SIZE, sent=0)


async def test_a_receiver_that_goes_in_mid_cycle_costs_nothing_but_that_cycle(ends: Ends) -> None:
    rig = ends.rig
    await ends.cycle()
    await rig.write("disk0", 5, "0", "4M")
    with pytest.raises(LinkLost):
        await ends.cycle(between=ends.link.close)
    await rig.require_clean()
    assert isinstance(await asyncio.to_thread(ends.served.exception), LinkLost)
    await asyncio.to_thread(ends.connect)
    shipped = await ends.cycle()
    assert shipped.written == 4 << 20
    await ends.require_current()


async def test_what_the_receiver_refuses_is_said_on_the_source(ends: Ends) -> None:
    rig = ends.rig
    for disk in DISKS:
        await rig.write(disk, 5, "0", "7M")
    ends.held.failure = Insufficient("the replica's disk is full", cure="Make room there.")
    with pytest.raises(PeerRefused) as caught:
        await ends.cycle()
    assert caught.value.detail["message"] == "the replica's disk is full"
    assert ends.held.cycle == 0
    await rig.require_clean()
    ends.held.failure = None
    ends.link.close()
    await asyncio.to_thread(ends.connect)
    await ends.cycle()
    await ends.require_current()


async def test_disks_are_looked_at_in_parts(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "_WINDOW", 3 << 20)
    monkeypatch.setattr(shipping, "_BEHIND", 1 << 20)
    rig = ends.rig
    await rig.write("disk0", 1, "1M", "3M")
    await rig.write("disk1", 1, "7M", "1M")
    await ends.cycle()
    await rig.write("disk0", 2, "2M", "2M")
    await rig.write("disk0", 0, "5M", "2M")
    await rig.write("disk1", 2, "0", "4k")
    shipped = await ends.cycle()
    assert (shipped.written, shipped.zeroed) == ((2 << 20) + 4096, 2 << 20)
    await ends.require_current()


async def test_a_source_that_breaks_in_mid_cycle_leaves_the_receiver_as_it_was(ends: Ends) -> None:
    rig = ends.rig
    await ends.cycle()
    await rig.write("disk1", 5, "0", "4M")
    captured = await rig.begin()
    await rig.machine._session.execute("nbd-server-stop")
    with pytest.raises(SourceLost):
        await asyncio.to_thread(ends.shipper.ship, captured, 1, {})
    await rig.capture.give_up()
    await rig.capture.attach(None)
    ends.link.close()
    await asyncio.to_thread(ends.connect)
    assert ends.held.cycle == 1
    await ends.cycle()
    await ends.require_current()


async def test_what_is_found_to_be_the_same_is_kept_up_no_longer(ends: Ends) -> None:
    await ends.rig.write("disk1", 7, "1M", "64k")
    await ends.cycle()
    await ends.rig.write("disk1", 8, "1M", "4k")
    captured = await ends.rig.begin()
    same, other = captured.disks
    found = [await asyncio.to_thread(compare, ends.link, captured, disk) for disk in captured.disks]
    assert [extents for extents, _ in found] == [[], [(1 << 20, 4096)]]
    target = memoryview(bytearray(4096))
    for disk in (same, other):
        with contextlib.closing(Source(captured.socket, disk.export, None)) as source:
            if disk is same:
                with pytest.raises(SourceLost):
                    source.read([(0, 4096)], target)
            else:
                source.read([(1 << 20, 4096)], target)
    assert bytes(target) == b"\x08" * 4096
    await ends.rig.capture.give_up()


async def test_what_was_read_is_kept_up_no_longer(ends: Ends) -> None:
    """The receiver may take long to make a cycle durable: writes cost no copies meanwhile."""
    await ends.rig.write("disk0", 3, "1M", "2M")
    await ends.cycle()
    await ends.rig.write("disk0", 4, "1M", "64k")
    captured = await ends.rig.begin()
    await asyncio.to_thread(ends.shipper.ship, captured, 1, {})
    target = memoryview(bytearray(4096))
    for disk in captured.disks:
        with contextlib.closing(Source(captured.socket, disk.export, disk.bitmap)) as source:
            for place in (0, 1 << 20, 2 << 20, disk.size - 4096):
                with pytest.raises(SourceLost):
                    source.read([(place, 4096)], target)
    await ends.rig.capture.give_up()
