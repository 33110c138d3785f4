"""Layers are moved by QEMU's jobs while cycles are captured: neither ends QEMU, nor the other."""

import asyncio

from test_capture import DISKS, Rig, rig

from holdfast.machine.disk_snapshot import DisksChanging
from holdfast.qmp.errors import QmpRefused
from holdfast.replication.capture import CycleUnderWay
from holdfast.spec.attachment import Layer

__all__ = ["rig"]


async def captured(rig: Rig, until: asyncio.Event) -> int:
    """How many cycles came about, one behind the other."""
    count = 0
    while not until.is_set():
        try:
            await rig.cycle()
            count += 1
        except (DisksChanging, QmpRefused, CycleUnderWay):
            await rig.capture.give_up()
        await asyncio.sleep(0.01)
    return count


async def put(rig: Rig, disk: str, name: str) -> None:
    """A layer on top, as soon as no job is in the way."""
    async with asyncio.timeout(30):
        while True:
            try:
                async with rig.machine._snapshot.barred(5.0):
                    return await rig.put_layer(disk, name)
            except QmpRefused:
                await asyncio.sleep(0.01)


async def test_streams_end_beside_cycles(rig: Rig) -> None:
    await rig.capture.attach(None)
    await rig.cycle()
    over = asyncio.Event()
    cycles = asyncio.create_task(captured(rig, over))
    layers = rig.machine.layers
    for number in range(1, 7):
        for disk in DISKS:
            name = f"{disk}-{number}"
            await put(rig, disk, name)
            await rig.write(disk, number, "0", "64k")
            below = disk if number == 1 else f"{disk}-{number - 1}"
            layer = Layer.of_file(rig.folder / f"{name}.qcow2", "qcow2", name)
            await layers.make_writable(layer, below)
            await layers.stream(f"settle-{disk}", name, None, lambda *_: None)
            await layers.make_writable(layer, None)
            await layers.drop(below)
            await asyncio.sleep(0.1)  # nothing is shown while a job begins
    over.set()
    assert await cycles > 0
    assert not rig.machine.ended.is_set()
    await rig.cycle()
    await rig.require_current()
