"""Instants of a real QEMU: disks switched with memory or without, the guest going on whatever happens."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_disk_layers import Rig, rig
from test_running import inputs_in, machines_of, state_in

from holdfast.host.processes import Processes
from holdfast.qmp.errors import QmpRefused
from holdfast.spec.attachment import DiskAttachment
from holdfast.spec.vm import DiskBus

__all__ = ["rig"]


async def test_disks_are_switched_while_the_guest_stands_still(rig: Rig) -> None:
    await rig.machine.cont()
    seen = []

    async def looked() -> None:
        seen.append(await rig.machine.status())

    async def work() -> None:
        await looked()
        await rig.put_on(disk0="disk0-1", disk1="disk1-1")

    stall = await rig.machine.instant.of_work(work, runs=True)
    assert seen == ["paused"] and await rig.machine.status() == "running"
    assert stall.seconds is not None and 0 < stall.seconds < 5
    for name, copy in (("disk0-2", None), ("disk0-3", looked)):
        await rig.open(name)
        top = (await rig.machine.layers.chains())["disk0"][0]
        stall = await rig.machine.instant.of_disks({top: name}, copy, runs=True)
        assert (await rig.machine.layers.chains())["disk0"][:2] == (name, top)
        assert await rig.machine.status() == "running" and stall.seconds is not None
    assert seen == ["paused", "paused"]
    with pytest.raises(ExceptionGroup):
        await rig.machine.instant.of_disks({"disk0-3": "none"}, None, runs=True)
    assert await rig.machine.status() == "running"

    async def broken() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await rig.machine.instant.of_work(broken, runs=True)
    assert await rig.machine.status() == "running"


async def test_memory_of_the_instant_is_restored_over_its_layers(rig: Rig, tmp_path: Path) -> None:
    await rig.machine.cont()
    memory = tmp_path / "memory"
    for number in range(1, 6):  # QEMU is not done the moment that it says so: more than once
        memory.unlink(missing_ok=True)
        memory.touch()
        await rig.write("disk0", number, "0", "64k")
        work = _switch(rig, number)
        stall = await rig.machine.instant.with_memory(memory, work, lambda *_: None, runs=True)
        assert await rig.machine.status() == "running" and stall.seconds is not None
        await rig.write("disk0", 9, "0", "64k")
    await rig.machine.pause()
    for number in (6, 7):  # of one that is paused: it can be done again, and layers can be merged
        (tmp_path / "more").touch()
        work = _switch(rig, number)
        stall = await rig.machine.instant.with_memory(tmp_path / "more", work, lambda *_: None, runs=False)
        assert await rig.machine.status() == "paused" and stall.seconds is None
        await rig.write("disk0", 9, "0", "64k")
    await rig.machine.kill()
    processes = Processes(state_in(tmp_path))
    disks = []
    for name, bus in (("disk0", DiskBus.VIRTIO), ("disk1", DiskBus.SCSI)):
        frozen = [rig.layer(f"{name}-{number}") for number in range(4, 0, -1)]
        disks.append(DiskAttachment(id=name, bus=bus, layers=(*frozen, rig.layer(name))))
    inputs = replace(inputs_in(tmp_path, str(uuid.uuid4())), disks=tuple(disks), incoming=True)
    restored = await machines_of(processes).launch(inputs, None, tmp_path / "log")
    await restored.memory.load(memory, lambda *_: None)
    await restored.cont()
    again = Rig(restored, tmp_path)
    assert await restored.status() == "running" and await again.reads("disk0", 5, "0", "64k")
    await restored.kill()


def _switch(rig: Rig, number: int) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        await rig.put_on(disk0=f"disk0-{number}", disk1=f"disk1-{number}")

    return work


async def test_what_fails_at_the_instant_leaves_the_guest_running(rig: Rig, tmp_path: Path) -> None:
    await rig.machine.cont()
    memory = tmp_path / "memory"
    memory.touch()

    async def broken() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await rig.machine.instant.with_memory(memory, broken, lambda *_: None, runs=True)
    assert await rig.machine.status() == "running"
    with pytest.raises(QmpRefused):
        nowhere = tmp_path / "none" / "memory"
        await rig.machine.instant.with_memory(nowhere, broken, lambda *_: None, runs=True)
    assert await rig.machine.status() == "running"
    await rig.write("disk0", 1, "0", "64k")
