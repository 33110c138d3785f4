"""Disks at rest, read by a real qemu-storage-daemon: what arrives, what need not be compared."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from held_in_memory import Held
from test_capture import DISKS, TAG, Rig, rig
from test_link import Pair
from test_running import Forgetful
from test_shipping import ID, SHAPES

from holdfast.machine.capabilities import CapabilityProbe
from holdfast.machine.resting_disks import RestingDisk, RestingDisks
from holdfast.machine.storage_daemon import StorageDaemons
from holdfast.replication.capture import Captured, Carried
from holdfast.replication.link import greet
from holdfast.replication.receiving import serve
from holdfast.replication.resting import RestingCapture
from holdfast.replication.shipping import Shipped, Shipper, open_vm
from holdfast.replication.wire import Open, Standing
from holdfast.spec.attachment import Layer
from holdfast.vm.records import VmRecord
from holdfast.vm.resting_disks import RestingVms

__all__ = ["rig"]
RECORD = cast(VmRecord, None)


def rig_chain(rig: Rig, disk: str) -> tuple[Layer, ...]:
    return (Layer.of_file(rig.folder / f"{disk}.qcow2", "qcow2", disk),)


@dataclass
class Chains:
    """The disks of the rig, as `RestingVms` opens them."""

    rig: Rig
    folder: Path

    def socket(self, _: VmRecord, tag: str) -> Path:
        return self.folder / f"{tag}.sock"

    @contextlib.asynccontextmanager
    async def opened(
        self, _: VmRecord, disks: Iterable[str], tag: str, shown: Path | None = None
    ) -> AsyncIterator[tuple[RestingDisks, dict[str, int], dict[str, tuple[str, ...]]]]:
        processes = self.rig.processes
        daemons = StorageDaemons(processes, CapabilityProbe(processes, Forgetful()))
        chains = {disk: rig_chain(self.rig, disk) for disk in disks}
        log = self.folder / "log"
        async with daemons.resting(self.folder / f"m-{tag}", None, log, "replica:test", shown) as resting:
            sizes = {
                disk: await resting.open(RestingDisk(chain, {}), writable=shown is None)
                for disk, chain in chains.items()
            }
            yield resting, sizes, {disk: tuple(each.name for each in chain) for disk, chain in chains.items()}


class Ends:
    def __init__(self, rig: Rig, folder: Path) -> None:
        folder.mkdir()
        self.rig, self.pair, self.held = rig, Pair(folder), Held(SHAPES)
        self.carried: Carried | None = None
        self.resting = RestingCapture(cast(RestingVms, Chains(rig, folder)), TAG)

    def connect(self) -> None:
        self.pair.receive(lambda link: serve(link, "south", lambda _: self.held))
        self.link = self.pair.connect()
        greet(self.link, "north")
        self.shipper = Shipper(self.link)
        open_vm(self.link, Open(replication=ID, vm=ID, name="web", disks=SHAPES))

    async def cycle(self, held: Standing) -> tuple[Captured, Shipped]:
        cycle = held.cycle + 1
        carried = self.carried if held.cycle else None
        async with self.resting.captured(RECORD, cycle, DISKS, held, carried) as captured:
            shipped = await asyncio.to_thread(
                self.shipper.ship, captured, held.cycle, {}, compared=held.compare
            )
        self.rig.cycles = self.rig.replica.held = cycle
        self.carried = await self.resting.plant(RECORD, DISKS, cycle)
        return captured, shipped

    async def require_current(self) -> None:
        self.rig.replica.disks = self.held.images
        await self.rig.require_current()


@pytest.fixture
async def ends(rig: Rig, tmp_path: Path) -> AsyncIterator[Ends]:
    made = Ends(rig, tmp_path / "ends")
    yield made
    made.link.close()
    await asyncio.to_thread(made.pair.close)


async def test_a_vm_that_is_off_is_sent_and_its_next_machine_needs_no_comparison(ends: Ends) -> None:
    rig = ends.rig
    await rig.write("disk0", 7, "1M", "1M")
    await rig.write("disk1", 8, "2M", "64k")
    await rig.machine.quit()
    ends.connect()
    _, shipped = await ends.cycle(Standing(cycle=0))
    assert (shipped.full, shipped.written, shipped.zeroed) == (True, (1 << 20) + (64 << 10), 0)

    await rig.launch()
    await rig.write("disk0", 9, "3M", "64k")
    assert await rig.capture.attach(ends.carried) == {"disk0": 1, "disk1": 1}
    assert await rig.capture.pending() == {"disk0": 64 << 10, "disk1": 0}
    left = await rig.capture.carry()
    await rig.machine.quit()

    ends.carried = left
    captured, shipped = await ends.cycle(Standing(cycle=1, disks=SHAPES))
    assert [disk.since for disk in captured.disks] == [1, 1]
    assert (shipped.compared, shipped.written) == (0, 64 << 10)
    await rig.launch()
    assert await rig.capture.attach(ends.carried) == {"disk0": 2, "disk1": 2}
    await ends.require_current()


async def test_after_qemu_was_killed_both_sides_compare_what_lies_there(ends: Ends) -> None:
    rig = ends.rig
    await rig.machine.quit()
    ends.connect()
    await ends.cycle(Standing(cycle=0))
    await rig.launch()
    await rig.capture.attach(ends.carried)
    await rig.write("disk0", 9, "3M", "64k")
    line = 'qemu-io -d /machine/peripheral/disk-disk0/virtio-backend "flush"'
    await rig.machine._session.execute("human-monitor-command", {"command-line": line})
    await rig.machine.kill()
    captured, shipped = await ends.cycle(Standing(cycle=1, disks=SHAPES))
    assert [disk.since for disk in captured.disks] == [None, None]
    assert shipped.compared > 0 and shipped.written == 64 << 10
    await rig.launch()
    assert await rig.capture.attach(ends.carried) == {"disk0": 2, "disk1": 2}
    await ends.require_current()


async def test_a_map_says_nothing_about_a_disk_that_the_receiver_does_not_hold(ends: Ends) -> None:
    rig = ends.rig
    await rig.machine.quit()
    ends.connect()
    await ends.cycle(Standing(cycle=0))
    captured, _ = await ends.cycle(Standing(cycle=1, disks=SHAPES[:1]))
    assert [disk.since for disk in captured.disks] == [1, None]
    captured, _ = await ends.cycle(Standing(cycle=2, disks=SHAPES, compare=True))
    assert [disk.since for disk in captured.disks] == [None, None]
    await rig.launch()
    await rig.capture.attach(ends.carried)
    await ends.require_current()


async def test_reading_that_is_cut_off_lets_go_of_the_disks_at_once(ends: Ends) -> None:
    rig = ends.rig
    await rig.write("disk0", 7, "0", "4M")
    await rig.machine.quit()
    ends.connect()
    begun = asyncio.Event()

    async def read() -> None:
        async with ends.resting.captured(RECORD, 1, DISKS, Standing(cycle=0), None):
            begun.set()
            await asyncio.Event().wait()

    reading = asyncio.create_task(read())
    await begun.wait()
    at = time.monotonic()
    reading.cancel()
    await asyncio.wait({reading})
    assert time.monotonic() - at < 1
    assert not rig.processes.find(role="storage")
    await rig.launch()
    await rig.write("disk0", 7, "0", "4k")
