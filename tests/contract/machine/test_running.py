"""A real QEMU: launched, adopted, saved, restored, killed, and one that cannot start."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.machine.capabilities import CapabilityProbe
from holdfast.machine.devices.usb import front
from holdfast.machine.plan import MachineInputs
from holdfast.machine.running import Machines, QemuEnded
from holdfast.qmp.errors import QmpRefused
from holdfast.spec.attachment import CdAttachment, DiskAttachment, Layer, SlirpAttachment
from holdfast.spec.vm import MAX_USB, Acceleration, DiskBus, Nic, UsbDevice, VmSpec


class Forgetful:
    async def get(self, key: str) -> dict[str, Any] | None:
        return None

    async def put(self, key: str, value: dict[str, Any]) -> None:
        pass


def state_in(folder: Path) -> StateFolder:
    return StateFolder(folder, folder / "r")


def machines_of(processes: Processes) -> Machines:
    return Machines(processes, CapabilityProbe(processes, Forgetful()))


def inputs_in(folder: Path, vm_id: str) -> MachineInputs:
    place = folder / "a,b"
    place.mkdir(exist_ok=True)
    (place / "disk").write_bytes(b"\0" * 1048576)
    return MachineInputs(
        vm_id=vm_id,
        name="a,b",
        spec=VmSpec(cpus=1, memory=64 << 20),
        acceleration=Acceleration.TCG,
        machine_type="pc-q35-7.2",
        runtime=place,
        console_log=place / "console.log",
        disks=(DiskAttachment(id="disk0", bus=DiskBus.SCSI, layers=(Layer.of_file(place / "disk", "raw"),)),),
        cds=(CdAttachment(id="cd0", path=None),),
        nics=((Nic(id="nic0", mac="52:54:00:00:00:01"), SlirpAttachment(host_name="h")),),
    )


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    made = Processes(state_in(tmp_path))
    yield made
    for found in made.find():
        await made.end(found.ref, grace=0.0)


async def test_adopted_after_kill_9_saved_and_restored(processes: Processes, tmp_path: Path) -> None:
    vm_id = str(uuid.uuid4())
    program = (
        "import asyncio,os,signal,sys;sys.path.insert(0,sys.argv[1]);from pathlib import Path\n"
        "import test_running as t;from holdfast.host.processes import Processes\n"
        "async def main():\n"
        "  folder=Path(sys.argv[2]);machines=t.machines_of(Processes(t.state_in(folder)))\n"
        "  machine=await machines.launch(t.inputs_in(folder,sys.argv[3]),None,folder/'log')\n"
        "  assert await machine.status()=='prelaunch';await machine.cont()\n"
        "  os.kill(os.getpid(),signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    argv = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path), vm_id]
    done = await asyncio.to_thread(subprocess.run, argv, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()

    machines, inputs = machines_of(processes), inputs_in(tmp_path, vm_id)
    adopted = await machines.adopt(machines.find()[vm_id], inputs.runtime)
    assert await adopted.status() == "running"
    assert (await adopted.screenshot()).startswith(b"\x89PNG")
    image = tmp_path / "memory"
    image.touch()
    await adopted.memory.save(image, lambda *_: None)
    await adopted.quit()
    assert machines.find() == {}
    restored = await machines.launch(replace(inputs, incoming=True), None, tmp_path / "log")
    await restored.memory.load(image, lambda *_: None)
    await restored.cont()
    assert await restored.status() == "running"
    await restored.kill()
    assert restored.ended.is_set()
    await restored.powerdown()  # off already
    async with asyncio.timeout(5):
        assert "SHUTDOWN" not in [event.name async for event in restored.events()]


async def test_a_bad_start_shows_the_log(processes: Processes, tmp_path: Path) -> None:
    inputs = replace(inputs_in(tmp_path, str(uuid.uuid4())), machine_type="pc-q35-0.0")
    with pytest.raises(QemuEnded) as caught:
        await machines_of(processes).launch(inputs, None, tmp_path / "log")
    assert "pc-q35-0.0" in caught.value.detail["log"]
    assert processes.find() == []


async def test_a_medium_is_changed_and_taken_out(processes: Processes, tmp_path: Path) -> None:
    inputs = inputs_in(tmp_path, str(uuid.uuid4()))
    machine = await machines_of(processes).launch(inputs, None, tmp_path / "log")
    iso = tmp_path / "x.iso"
    iso.write_bytes(b"\0" * 65536)
    await machine.cds.set_medium("cd0", iso)
    await machine.cds.set_medium("cd0", None)
    await machine.kill()


async def test_usb_devices_come_and_go(processes: Processes, tmp_path: Path) -> None:
    """What is no USB device is refused whole; each port takes a device, and gives it back."""
    inputs = inputs_in(tmp_path, str(uuid.uuid4()))
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        with pytest.raises(QemuEnded, match="failed to open host usb device"):
            bad = replace(inputs, usb=((UsbDevice(id="usb0", host="1.1"), fd),))
            await machines_of(processes).launch(bad, None, tmp_path / "log", [fd])
        machine = await machines_of(processes).launch(inputs, None, tmp_path / "log")
        with pytest.raises(QmpRefused, match="failed to open host usb device"):
            await machine.usb.add("usb0", fd)
    finally:
        os.close(fd)
    assert not await machine.usb.has("usb0")
    names = [f"usb{number}" for number in range(MAX_USB)]
    for name in names:
        emulated = {key: value for key, value in front(name).items() if key != "hostdevice"}
        await machine.hotplug.add({**emulated, "driver": "usb-kbd"})
        assert await machine.usb.has(name)
    for name in names:
        await machine.usb.remove(name)
        assert not await machine.usb.has(name)
    await machine.kill()
