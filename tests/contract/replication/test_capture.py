"""Cycles of a real QEMU whose two disks are written to all the time, and what is left after each failure."""

import asyncio
import struct
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from test_disk_layers import make
from test_running import inputs_in, machines_of, state_in

from holdfast.host.processes import Processes
from holdfast.machine import disk_snapshot
from holdfast.machine.disk_snapshot import DisksChanging, SnapshotHeld
from holdfast.machine.running import RunningMachine
from holdfast.qmp.errors import QmpRefused
from holdfast.replication import wire
from holdfast.replication.capture import Capture, Captured, Carried, CycleUnderWay
from holdfast.replication.nbd import Source, SourceLost
from holdfast.spec.attachment import DiskAttachment, Layer
from holdfast.spec.vm import DiskBus

SIZE = 8 << 20
TAG = "0a1b2c3d"
DISKS = ("disk0", "disk1")


@dataclass
class Replica:
    """What a receiver would hold: the last cycle that arrived whole."""

    held: int = 0
    disks: dict[str, bytearray] = field(default_factory=dict)
    sent: int = 0

    def ship(self, captured: Captured) -> dict[str, bytearray]:
        """Disks after this cycle, which is not held yet."""
        found = {}
        for disk in captured.disks:
            whole = disk.since is None
            image = bytearray(disk.size) if whole else bytearray(self.disks[disk.id])
            image.extend(bytes(disk.size - len(image)))
            source = Source(captured.socket, disk.export, disk.bitmap)
            try:
                assert source.size == disk.size
                extents = source.content(0, disk.size) if whole else source.changed(0, disk.size)
                for batch in wire.batches(extents):
                    payload = memoryview(bytearray(sum(length for _, length in batch)))
                    source.read(batch, payload)
                    for offset, length in batch:
                        image[offset : offset + length] = payload[:length]
                        payload = payload[length:]
                        self.sent += length
            finally:
                source.close()
            found[disk.id] = image
        return found


@dataclass
class Guest:
    """Writes an ever increasing number to disk0 and then to disk1, each time at other places."""

    rig: "Rig"
    number: int = 0

    async def write_one(self) -> None:
        self.number += 1
        number = self.number % 250 + 1
        for disk in DISKS:
            await self.rig.write(disk, number, f"{64 * (number % 16)}k", "4k")
            await self.rig.write(disk, number, "4M", "4k")

    async def write_on(self) -> None:
        while True:
            await self.write_one()
            await asyncio.sleep(0.001)


async def run(*command: str) -> None:
    await asyncio.to_thread(subprocess.run, command, check=True)


def numbers(image: bytes) -> int:
    return image[4 << 20]


@dataclass
class Rig:
    machine: RunningMachine
    folder: Path
    processes: Processes
    vm: str
    replica: Replica = field(default_factory=Replica)
    cycles: int = 0

    @property
    def capture(self) -> Capture:
        return Capture(self.machine, TAG, self.folder / "n.sock", self.folder)

    async def write(self, disk: str, pattern: int, at: str, size: str) -> None:
        device = "disk-disk1" if disk == "disk1" else f"/machine/peripheral/disk-{disk}/virtio-backend"
        line = f'qemu-io -d {device} "write -P {pattern} {at} {size}"'
        said = await self.machine._session.execute("human-monitor-command", {"command-line": line})
        assert "rror" not in said, said

    async def begin(self) -> Captured:
        self.cycles += 1
        return await self.capture.begin(self.cycles, DISKS, self.replica.held)

    async def cycle(self) -> dict[str, int | None]:
        """One whole cycle; returns since when the changes of each disk were known."""
        captured = await self.begin()
        self.replica.disks = await asyncio.to_thread(self.replica.ship, captured)
        self.replica.held = captured.cycle
        await self.capture.commit(captured.cycle)
        return {disk.id: disk.since for disk in captured.disks}

    async def require_current(self) -> None:
        """What is held is what the guest has, which does not write now, and nothing was left in QEMU."""
        captured = await self.begin()
        disks = tuple(each.model_copy(update={"since": None}) for each in captured.disks)
        whole = captured.model_copy(update={"disks": disks})
        images = await asyncio.to_thread(Replica().ship, whole)
        await self.capture.give_up()
        assert images == self.replica.disks
        await self.require_clean()

    async def require_clean(self) -> None:
        nodes = await self.machine.layers.nodes()
        assert {name for name in nodes if name[:3] in ("cb-", "fl-", "sa-")} == set()
        maps = await self.machine.change_maps.of_disks()
        assert all(len(each) <= 1 and all(one.recording for one in each.values()) for each in maps.values())
        assert not await self.machine._session.execute("query-block-exports")
        assert not await self.machine._session.execute("query-fdsets")

    async def give_up_patiently(self) -> None:
        """Once no job stands in the way."""
        while True:
            try:
                return await self.capture.give_up()
            except DisksChanging:
                await asyncio.sleep(0.01)

    async def launch(self) -> None:
        attachments = []
        for name, bus in zip(DISKS, (DiskBus.VIRTIO, DiskBus.SCSI), strict=True):
            layer = Layer.of_file(self.folder / f"{name}.qcow2", "qcow2", name)
            attachments.append(DiskAttachment(id=name, bus=bus, layers=(layer,)))
        inputs = replace(inputs_in(self.folder, self.vm), disks=tuple(attachments))
        self.machine = await machines_of(self.processes).launch(inputs, None, self.folder / "log")

    async def restart(self, *, kill: bool = False) -> None:
        await (self.machine.kill() if kill else self.machine.quit())
        await self.launch()

    async def put_layer(self, disk: str, name: str) -> None:
        make(self.folder / f"{name}.qcow2")
        await self.machine.layers.add(Layer.of_file(self.folder / f"{name}.qcow2", "qcow2", name))
        top = (await self.machine.layers.chains())[disk][0]
        await self.machine.layers.switch({top: name})


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    for name in DISKS:
        make(tmp_path / f"{name}.qcow2")
    made = Rig(None, tmp_path, Processes(state_in(tmp_path)), str(uuid.uuid4()))  # type: ignore[arg-type]
    await made.launch()
    yield made
    await made.machine.kill()


async def test_every_cycle_is_of_one_instant_while_the_guest_writes(rig: Rig) -> None:
    guest = Guest(rig)
    assert await rig.capture.attach(None) == {"disk0": None, "disk1": None}
    writing = asyncio.create_task(guest.write_on())
    assert await rig.cycle() == {"disk0": None, "disk1": None}
    seen = []
    for number in range(20):
        assert set((await rig.cycle()).values()) == {number + 1}
        first, second = (numbers(rig.replica.disks[disk]) for disk in DISKS)
        assert first - second in (0, 1, -249), (first, second)
        seen.append(first)
        await asyncio.sleep(0.02)
    writing.cancel()
    await asyncio.wait({writing})
    assert len(set(seen)) > 10
    await rig.cycle()
    await rig.require_current()


async def test_only_what_changed_is_sent(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.write("disk0", 7, "0", "4M")
    assert set((await rig.cycle()).values()) == {None}
    assert rig.replica.sent == 4 << 20
    await rig.write("disk0", 8, "1M", "4k")
    await rig.write("disk1", 8, "12k", "8k")
    assert await rig.capture.pending() == {"disk0": 4096, "disk1": 8192}
    await rig.cycle()
    assert rig.replica.sent == (4 << 20) + 4096 + 8192
    await rig.cycle()
    assert rig.replica.sent == (4 << 20) + 4096 + 8192
    await rig.require_current()


async def test_what_is_overwritten_during_a_cycle_is_read_as_it_was(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.write("disk0", 1, "0", "1M")
    captured = await rig.begin()
    await rig.write("disk0", 2, "512k", "1M")
    images = await asyncio.to_thread(rig.replica.ship, captured)
    assert images["disk0"][: 1 << 20] == b"\1" * (1 << 20)
    assert images["disk0"][1 << 20 :] == bytes(SIZE - (1 << 20))
    rig.replica.disks, rig.replica.held = images, captured.cycle
    await rig.capture.commit(captured.cycle)
    await rig.cycle()
    await rig.require_current()


async def test_a_cycle_given_up_is_sent_with_the_next(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.cycle()
    await rig.write("disk0", 1, "0", "64k")
    await rig.begin()
    await rig.write("disk1", 2, "0", "64k")
    with pytest.raises(CycleUnderWay):
        await rig.begin()
    await rig.capture.give_up()
    await rig.require_clean()
    assert await rig.capture.pending() == {"disk0": 65536, "disk1": 65536}
    assert set((await rig.cycle()).values()) == {1}
    await rig.require_current()


async def test_a_first_cycle_given_up_is_sent_whole_again(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.write("disk0", 1, "0", "64k")
    await rig.begin()
    await rig.capture.give_up()
    assert set((await rig.cycle()).values()) == {None}
    await rig.require_current()


async def test_a_commit_that_was_not_heard_of_costs_nothing_but_bytes(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.cycle()
    await rig.write("disk0", 1, "0", "64k")
    captured = await rig.begin()
    rig.replica.disks = await asyncio.to_thread(rig.replica.ship, captured)
    rig.replica.held = captured.cycle
    await rig.write("disk0", 2, "64k", "64k")
    await rig.capture.give_up()
    assert set((await rig.cycle()).values()) == {1}
    await rig.require_current()


STEPS = ["blockdev-reopen", "block-export-add", "block-dirty-bitmap-disable", "blockdev-add", "add-fd"]


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_that_fails_leaves_nothing(rig: Rig, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.capture.attach(None)
    await rig.cycle()
    await rig.write("disk0", 1, "0", "64k")
    execute = rig.machine._session.execute
    failures = 1

    async def failing(command: str, arguments: Any = None, limit: float = 30.0) -> Any:
        nonlocal failures
        told = [each["type"] for each in (arguments or {}).get("actions", ())]
        if failures and (command == step or step in told):
            failures -= 1
            raise QmpRefused("no", value=step)
        return await execute(command, arguments, limit)

    monkeypatch.setattr(rig.machine._session, "execute", failing)
    with pytest.raises(QmpRefused):
        await rig.begin()
    assert not failures
    await rig.require_clean()
    await rig.write("disk1", 2, "0", "64k")
    assert set((await rig.cycle()).values()) == {1}
    await rig.require_current()


@pytest.mark.parametrize("last", ["record", "take", "freeze", "show", "commit"])
async def test_what_a_killed_daemon_left_is_taken_away_by_the_next(
    rig: Rig, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.capture.attach(None)
    await rig.cycle()
    await rig.write("disk0", 1, "0", "64k")
    maps, snapshot = rig.machine.change_maps, rig.machine.snapshot
    await maps.record(f"since-{TAG}-2", DISKS)
    rig.cycles = 2
    if last != "record":
        await snapshot.take(TAG, DISKS, rig.folder)
    if last not in ("record", "take"):
        await maps.freeze(dict.fromkeys(DISKS, f"since-{TAG}-1"))
    if last in ("show", "commit"):
        await snapshot.show(TAG, dict.fromkeys(DISKS, f"since-{TAG}-1"))
    if last == "commit":
        await snapshot.release(TAG)
    await rig.write("disk1", 2, "0", "64k")
    await rig.machine.detach()
    found = machines_of(rig.processes)
    rig.machine = await found.adopt(found.find()[rig.vm], rig.folder / "a,b")
    assert await rig.capture.attach(None) == {"disk0": 1, "disk1": 1}
    await rig.require_clean()
    await rig.cycle()
    await rig.require_current()


async def test_layers_may_come_on_top_between_cycles_and_within_one(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.write("disk0", 1, "0", "1M")
    await rig.cycle()
    await rig.put_layer("disk0", "disk0-1")
    await rig.write("disk0", 2, "512k", "64k")
    sent = rig.replica.sent
    captured = await rig.begin()
    await rig.write("disk0", 3, "512k", "4k")
    await rig.put_layer("disk0", "disk0-2")
    await rig.write("disk0", 4, "516k", "4k")
    rig.replica.disks = await asyncio.to_thread(rig.replica.ship, captured)
    assert set(rig.replica.disks["disk0"][512 << 10 : 576 << 10]) == {2}
    rig.replica.held = captured.cycle
    await rig.capture.commit(captured.cycle)
    assert (await rig.machine.layers.chains())["disk0"] == ("disk0-2", "disk0-1", "disk0")
    await rig.write("disk0", 5, "0", "4k")
    assert await rig.cycle() == {"disk0": 2, "disk1": 2}
    assert rig.replica.sent - sent == (64 << 10) + 3 * 4096
    await rig.require_current()


async def test_a_merge_of_layers_changes_nothing_and_keeps_cycles_waiting(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.put_layer("disk0", "disk0-1")
    await rig.write("disk0", 1, "0", "1M")
    await rig.cycle()
    layers = rig.machine.layers
    await layers.make_writable(Layer.of_file(rig.folder / "disk0.qcow2", "qcow2", "disk0"), None)
    assert await layers.commit("merge", "th-disk0", "disk0-1", "disk0", lambda *_: None)
    with pytest.raises(DisksChanging):
        await rig.begin()
    await layers.finish("merge")
    assert (await layers.chains())["disk0"] == ("disk0",)
    sent = rig.replica.sent
    await rig.capture.give_up()
    assert await rig.cycle() == {"disk0": 1, "disk1": 1}
    assert rig.replica.sent == sent
    await rig.require_current()


async def test_a_machine_that_ends_in_good_order_carries_its_maps_over_once(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.cycle()
    await rig.write("disk0", 1, "0", "64k")
    carried = Carried.model_validate_json((await rig.capture.carry()).model_dump_json())
    await rig.write("disk0", 2, "64k", "64k")  # a guest that was not stopped after all
    await rig.restart()
    await rig.write("disk1", 3, "0", "64k")  # a guest that was started too early
    assert await rig.capture.attach(carried) == {"disk0": 1, "disk1": 1}
    assert await rig.capture.pending() == {"disk0": 131072, "disk1": 65536}
    await rig.cycle()
    await rig.require_current()
    await rig.restart()
    assert await rig.capture.attach(carried) == {"disk0": None, "disk1": None}


async def test_maps_of_other_chains_and_of_killed_machines_are_not_believed(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.cycle()
    carried = await rig.capture.carry()
    await rig.restart()
    await rig.restart(kill=True)
    assert await rig.capture.attach(carried) == {"disk0": None, "disk1": None}
    rig.cycles = 10
    await rig.cycle()
    carried = await rig.capture.carry()
    await rig.restart()
    await rig.put_layer("disk1", "disk1-1")
    assert await rig.capture.attach(carried) == {"disk0": 11, "disk1": None}
    await rig.cycle()
    await rig.require_current()


async def test_a_disk_grows_between_cycles(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.write("disk0", 1, "0", "64k")
    await rig.cycle()
    await rig.machine.disks.resize("disk0", DiskBus.VIRTIO, SIZE + (1 << 20))
    await rig.write("disk0", 2, "8M", "64k")
    assert set((await rig.cycle()).values()) == {1}
    assert len(rig.replica.disks["disk0"]) == SIZE + (1 << 20)
    await rig.require_current()


async def test_a_disk_grows_within_a_cycle(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.write("disk0", 1, "0", "64k")
    await rig.cycle()
    captured = await rig.begin()
    await rig.machine.disks.resize("disk0", DiskBus.VIRTIO, SIZE + (1 << 20))
    await rig.write("disk0", 2, "8M", "64k")
    rig.replica.disks = await asyncio.to_thread(rig.replica.ship, captured)
    assert len(rig.replica.disks["disk0"]) == SIZE
    rig.replica.held = captured.cycle
    await rig.capture.commit(captured.cycle)
    assert set((await rig.cycle()).values()) == {2}
    assert len(rig.replica.disks["disk0"]) == SIZE + (1 << 20)
    await rig.require_current()


async def test_copies_that_find_no_room_break_the_cycle_and_not_the_guest(rig: Rig, tmp_path: Path) -> None:
    await rig.capture.attach(None)
    await rig.write("disk0", 1, "0", "4M")
    await rig.cycle()
    await rig.write("disk0", 2, "0", "4M")
    small = tmp_path / "small"
    small.mkdir()
    await run("mount", "-t", "tmpfs", "-o", "size=1M", "none", str(small))
    try:
        rig.cycles += 1
        capture = Capture(rig.machine, TAG, rig.folder / "n.sock", small)
        captured = await capture.begin(rig.cycles, DISKS, rig.replica.held)
        await rig.write("disk0", 3, "0", "4M")
        with pytest.raises(SourceLost):
            await asyncio.to_thread(rig.replica.ship, captured)
        await capture.give_up()
        await rig.require_clean()
    finally:
        await run("umount", "-l", str(small))
    assert set((await rig.cycle()).values()) == {1}
    await rig.require_current()


async def test_a_reader_that_hangs_keeps_the_next_cycle_waiting_and_not_the_guest(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_snapshot, "_CLOSE_SECONDS", 0.5)
    await rig.capture.attach(None)
    await rig.write("disk0", 1, "0", "4M")
    await rig.cycle()
    captured = await rig.begin()
    disk = captured.disks[0]
    source = await asyncio.to_thread(Source, captured.socket, disk.export, disk.bitmap)
    request = struct.pack(">IHHQQI", 0x25609513, 0, 0, 0, 0, 4 << 20)
    source._data._socket.sendall(request * 16)  # and reads no answer
    with pytest.raises(SnapshotHeld):
        await rig.capture.give_up()
    await rig.write("disk0", 2, "0", "4M")
    source.close()
    await rig.capture.give_up()
    await rig.require_clean()
    assert set((await rig.cycle()).values()) == {1}
    await rig.require_current()


async def test_what_is_trimmed_is_not_kept_up(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.write("disk0", 1, "0", "4M")
    await rig.cycle()
    captured = await rig.begin()
    disk = captured.disks[0]
    source = await asyncio.to_thread(Source, captured.socket, disk.export, disk.bitmap)
    await asyncio.to_thread(source.trim, [(0, 4 << 20)])
    await rig.write("disk0", 2, "0", "4M")
    with pytest.raises(SourceLost):
        await asyncio.to_thread(source.read, [(0, 4096)], memoryview(bytearray(4096)))
    source.close()
    await rig.capture.give_up()
    await rig.cycle()
    await rig.require_current()


async def test_two_replications_have_instants_of_their_own_and_neither_waits_for_the_other(rig: Rig) -> None:
    first, second = rig.capture, Capture(rig.machine, "ffffffff", rig.folder / "n.sock", rig.folder)
    await first.attach(None)
    await rig.cycle()
    await second.attach(None)
    other = Replica()
    held = await second.begin(1, DISKS, 0)
    other.disks = await asyncio.to_thread(other.ship, held)
    await second.commit(1)
    other.held = 1

    await rig.write("disk0", 3, "1M", "64k")
    below = await second.begin(2, DISKS, 1)  # it hangs there, while the first one goes on above it
    for number in range(4, 7):
        await rig.write("disk0", number, "1M", "64k")
        await rig.write("disk1", number, "2M", "64k")
        assert await rig.cycle() == {"disk0": rig.replica.held - 1, "disk1": rig.replica.held - 1}
    shown = await asyncio.to_thread(other.ship, below)
    assert (shown["disk0"][1 << 20], shown["disk1"][2 << 20]) == (3, 0)

    rig.cycles += 1
    above = await first.begin(rig.cycles, DISKS, rig.replica.held)
    await second.commit(2)  # taken away from below another
    other.disks, other.held = shown, 2
    await rig.write("disk0", 9, "1M", "64k")
    images = await asyncio.to_thread(rig.replica.ship, above)
    assert images["disk0"][1 << 20] == 6
    await first.give_up()
    assert await rig.machine.snapshot.tags() == frozenset()

    captured = await second.begin(3, DISKS, 2)
    other.disks = await asyncio.to_thread(other.ship, captured)
    await second.commit(3)
    await rig.cycle()
    assert other.disks == rig.replica.disks
    await second.forget()
    await rig.require_current()
    nodes = await rig.machine.layers.nodes()
    assert not [node for node in nodes if node.startswith("sl-")]


async def test_jobs_on_layers_begin_between_instants_and_never_in_one(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.cycle()
    done = asyncio.Event()

    async def cycles() -> int:
        count = 0
        while not done.is_set():
            try:
                await rig.cycle()
                count += 1
            except DisksChanging:
                await rig.give_up_patiently()
        return count

    async def guest() -> None:
        await Guest(rig).write_on()

    cycling, writing = asyncio.create_task(cycles()), asyncio.create_task(guest())
    for number in range(1, 6):
        name = f"disk0-{number}"
        async with rig.machine._snapshot.barred(5.0):
            await rig.put_layer("disk0", name)
        below = (await rig.machine.layers.chains())["disk0"][1]
        await rig.machine.layers.stream(f"merge-{number}", name, None, lambda *_: None)
        await rig.machine.layers.drop(below)
        await asyncio.sleep(0.01)
    done.set()
    assert await cycling > 0
    writing.cancel()
    await asyncio.wait({writing})
    await rig.cycle()
    await rig.require_current()


async def test_a_cycle_gives_way_to_whoever_needs_the_disks_for_itself(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.cycle()
    await rig.write("disk0", 6, "1M", "4k")
    await rig.begin()
    async with rig.machine.snapshot.barred():
        assert not await rig.machine.snapshot.tags()
        await rig.capture.give_up()
        with pytest.raises(DisksChanging):
            await rig.begin()
    assert set((await rig.cycle()).values()) == {1}
    await rig.require_current()
