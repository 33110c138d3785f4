"""A real QEMU: launched, adopted, saved, restored, killed, and one that cannot start."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast.host.processes import Processes
from holdfast.machine.capabilities import ask
from holdfast.machine.plan import MachineInputs
from holdfast.machine.running import Machines, QemuEnded
from holdfast.spec.attachment import CdAttachment, DiskAttachment, Layer, SlirpAttachment
from holdfast.spec.vm import Acceleration, DiskBus, Nic, VmSpec


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    made = Processes(SimpleNamespace(mark=uuid.uuid4().hex))  # type: ignore[arg-type]
    yield made
    for found in made.find():
        await made.end(found.ref)


@pytest.fixture
def inputs(tmp_path: Path) -> MachineInputs:
    folder = tmp_path / "a,b"
    folder.mkdir()
    (folder / "disk").write_bytes(b"\0" * 1048576)
    layers = (Layer(path=folder / "disk", format="raw"),)
    return MachineInputs(
        vm_id=str(uuid.uuid4()),
        name="a,b",
        spec=VmSpec(cpus=1, memory=64 << 20),
        acceleration=Acceleration.TCG,
        machine_type="q35",
        runtime=folder,
        log_folder=folder,
        disks=tuple(DiskAttachment(id=f"disk{n}", bus=bus, layers=layers) for n, bus in [(0, DiskBus.SCSI)]),
        cds=(CdAttachment(id="cd0", path=None),),
        nics=((Nic(id="nic0", mac="52:54:00:00:00:01"), SlirpAttachment(host_name="h")),),
    )


async def test_adopted_saved_and_restored(processes: Processes, inputs: MachineInputs) -> None:
    machines, image = Machines(processes), inputs.runtime / "memory"
    machine = await machines.launch(inputs)
    assert await machine.status() == "prelaunch"
    await machine.cont()
    await machine.detach()
    adopted = await machines.adopt(inputs.vm_id, inputs.runtime)
    assert adopted is not None
    assert await adopted.status() == "running"
    assert (await adopted.screenshot()).startswith(b"\x89PNG")
    await adopted.save_memory(image, lambda *_: None)
    await adopted.quit()
    restored = await machines.launch(replace(inputs, incoming=True))
    await restored.load_memory(image, lambda *_: None)
    await restored.cont()
    assert await restored.status() == "running"
    await restored.kill()
    async with asyncio.timeout(5):
        assert [event.name async for event in restored.events()][-1:] != ["SHUTDOWN"]
    assert restored.ended.is_set()


async def test_a_bad_start_shows_the_log(processes: Processes, inputs: MachineInputs) -> None:
    with pytest.raises(QemuEnded) as caught:
        await Machines(processes).launch(replace(inputs, machine_type="pc-q35-0.0"))
    assert "pc-q35-0.0" in caught.value.detail["log"]


async def test_qemu_names_its_newest_board(processes: Processes) -> None:
    assert (await ask(processes)).machine_type.startswith("pc-q35-")
