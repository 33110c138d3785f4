"""Limits of host, peer and VM, and priorities, over real links of the real process that ships."""

import asyncio
import os
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from held_in_memory import Arriving, Held
from test_link import Pair

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.replication.capture import Captured, CapturedDisk
from holdfast.replication.dispatch import Dispatch, DispatchedLink
from holdfast.replication.limits import PeerNotSentTo, SharedLimits
from holdfast.replication.pace import BadLimit
from holdfast.replication.pairing import PeerBook
from holdfast.replication.receiving import serve
from holdfast.replication.shipping import Shipped
from holdfast.replication.wire import Begin, DiskShape, Open
from holdfast.replication.worker import Limits
from holdfast.spec.replica import PeerRole, Priority, ReplicaPeer

SIZE = 6 << 20
MB = 1_000_000
SHAPE = DiskShape(id="disk0", size=SIZE)


def least(size: int, rate: float) -> float:
    """Seconds for so many bytes: a quarter of a second's go at once, nobody waits for the last piece."""
    return 0.95 * (size - rate / 4 - (1 << 20)) / rate


class Vm:
    """A replication of random bytes, which QEMU's own NBD server serves."""

    def __init__(self, link: DispatchedLink, priority: Priority, limit: str) -> None:
        self.link, self.priority, self.limit = link, priority, limit
        self.held = Held((SHAPE,))
        self.id = str(uuid.uuid4())
        self.arrived = 0
        begin = self.held.begin

        def counted(cycle: Begin) -> Arriving:
            arriving = begin(cycle)
            write = arriving.write

            def count(disk: str, offset: int, data: memoryview) -> None:
                self.arrived += len(data)
                write(disk, offset, data)

            arriving.write = count  # type: ignore[method-assign]
            return arriving

        self.held.begin = counted  # type: ignore[method-assign]


class Host:
    def __init__(self, folder: Path, processes: Processes) -> None:
        (folder / "ends").mkdir()
        self.pair = Pair(folder / "ends")
        self.dispatch = Dispatch(processes)
        self.content = os.urandom(SIZE)
        (folder / "disk").write_bytes(self.content)
        self.socket = folder / "nbd.sock"
        argv = ["qemu-nbd", "--persistent", "--shared=8", "-f", "raw", "-x", "disk", "-k"]
        self.server = subprocess.Popen([*argv, str(self.socket), str(folder / "disk")])

    async def vm(self, priority: Priority = Priority.NORMAL, limit: str = "none") -> Vm:
        made = Vm(self.dispatch.link(), priority, limit)
        self.pair.receive(lambda link: serve(link, "south", lambda _: made.held))
        opened = Open(replication=made.id, vm=made.id, name="web", disks=(SHAPE,))
        ends = (self.pair.address, self.pair.source, self.pair.receiver.fingerprint, "north", opened)
        await made.link.connect(*ends, priority=priority, limit=limit)
        return made

    async def ship(self, vm: Vm) -> Shipped:
        while not self.socket.exists():
            await asyncio.sleep(0.01)
        disk = CapturedDisk(id="disk0", size=SIZE, export="disk", since=None)
        captured = Captured(cycle=1, taken=time.time(), socket=self.socket, disks=(disk,))
        shipped = await vm.link.ship(captured, 0, {})
        assert vm.held.images["disk0"] == self.content
        return shipped


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    state = StateFolder(tmp_path / "state", tmp_path / "run")
    state.prepare()
    made = Host(tmp_path, Processes(state))
    yield made
    await made.dispatch.close()
    made.server.terminate()
    made.server.wait(10)
    await asyncio.to_thread(made.pair.close)


async def test_under_contention_high_goes_first_low_still_moves_and_limits_change_live(host: Host) -> None:
    peer = host.pair.receiver.fingerprint
    host.dispatch.limit(Limits(peers={peer: "6MB/s"}))
    low, normal, high = [await host.vm(each) for each in (Priority.LOW, Priority.NORMAL, Priority.HIGH)]
    begun = time.monotonic()
    slow, usual, fast = [asyncio.create_task(host.ship(each)) for each in (low, normal, high)]
    await fast
    assert low.arrived <= normal.arrived < SIZE * 2 / 3  # they arrive in steps
    before = low.arrived
    await usual
    assert before < low.arrived < SIZE * 2 / 3
    # All three have one rate together, the peer's.
    assert time.monotonic() - begun > least(2 * SIZE + low.arrived, 6 * MB)
    host.dispatch.limit(Limits(host="50kB/s"))
    await asyncio.sleep(0.2)
    raised = time.monotonic()
    host.dispatch.limit(Limits())
    await slow
    assert time.monotonic() - raised < 10.0  # at the rate of before the rest takes a minute


async def test_the_hosts_limit_holds_for_all_and_a_vms_own_is_tuned_while_it_sends(host: Host) -> None:
    host.dispatch.limit(Limits(host="8MB/s"))
    first, second = await host.vm(), await host.vm(limit="100kB/s")
    begun = time.monotonic()
    slow = asyncio.create_task(host.ship(second))
    await host.ship(first)
    assert least(SIZE, 8 * MB) < time.monotonic() - begun < 3.0
    assert second.arrived < 3 * MB
    second.link.tune(Priority.HIGH, "none")
    await slow
    assert time.monotonic() - begun > least(2 * SIZE, 8 * MB)


async def test_limits_outlive_the_process_and_the_daemon(host: Host, tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite")
    peers = PeerBook(catalog, EventLog(catalog))
    for name, role in (("south", PeerRole.RECEIVER), ("north", PeerRole.SOURCE)):
        of = {
            "certificate": "x",
            "fingerprint": host.pair.receiver.fingerprint,
            "paired": "2030-01-01T00:00:00Z",
        }
        await peers.add(ReplicaPeer.model_validate({"name": name, "role": role, **of}))
    path = tmp_path / "limits.json"
    limits = SharedLimits(path, host.dispatch, peers)
    limits.load()
    assert (await limits.show()).peers == {}
    await limits.limit_host("1Gbit/s")
    shown = await limits.limit_peer("SOUTH", "4MB/s,mon-sun 00:00-24:00=4MB/s")
    assert (shown.host, list(shown.peers)) == ("1Gbit/s", ["south"])
    for name, limit, error in (("south", "fast", BadLimit), ("north", "1MB/s", PeerNotSentTo)):
        with pytest.raises(error):
            await limits.limit_peer(name, limit)
    anew = SharedLimits(path, Dispatch(host.dispatch._processes), peers)
    anew.load()
    assert await anew.show() == shown
    # A worker that begins after the limit was set keeps to it.
    vm = await host.vm()
    begun = time.monotonic()
    await host.ship(vm)
    assert time.monotonic() - begun > least(SIZE, 4 * MB)
    await limits.limit_peer("south", "none")
    assert (await limits.show()).peers == {}
    path.write_text('{"host": "fast", "peers": {}}')
    damaged = SharedLimits(path, Dispatch(host.dispatch._processes), peers)
    damaged.load()
    assert damaged.now == Limits()
