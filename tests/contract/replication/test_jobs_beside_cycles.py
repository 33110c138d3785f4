"""A job on disks and a cycle's snapshot keep out of each other's way: QEMU would end by a fault."""

import asyncio
from typing import Any

import pytest
from test_capture import Rig, rig  # noqa: F401  (a fixture)

from holdfast.machine.disk_snapshot import DisksChanging, DiskSnapshot

LOOKED_BEFORE = "what stands below was looked at, and is about to be changed"


@pytest.mark.parametrize("of_release", [False, True])
async def test_a_job_does_not_begin_in_the_middle_of_a_change(
    rig: Rig,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    of_release: bool,
) -> None:
    machine = rig.machine
    await rig.capture.attach(None)
    await rig.cycle()
    await rig.put_layer("disk0", "disk0-1")
    await rig.write("disk0", 5, "0", "64k")
    look, jobs = DiskSnapshot._below, list[asyncio.Task[None]]()

    async def looked(snapshot: DiskSnapshot, nodes: Any) -> Any:
        found = await look(snapshot, nodes)
        if nodes and nodes[0].startswith("cb-") is of_release and not jobs:
            stream = machine.layers.stream("stream", "disk0-1", None, lambda *_: None)
            jobs.append(asyncio.create_task(stream))
            await asyncio.sleep(0.3)  # in which it begins, if nothing keeps it
            assert not await machine._session.execute("query-block-jobs"), LOOKED_BEFORE
            assert (await machine.layers.chains())["disk0"] == ("disk0-1", "disk0"), LOOKED_BEFORE
        return found

    monkeypatch.setattr(DiskSnapshot, "_below", looked)
    try:
        await rig.cycle()
    except DisksChanging:
        await jobs[0]  # it began before the cycle came to its end
        await rig.capture.give_up()
    await asyncio.gather(*jobs)
    assert jobs
    assert (await machine.layers.chains())["disk0"] == ("disk0-1",)
    await rig.cycle()
    await rig.require_current()
