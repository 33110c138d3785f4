"""A real guest that writes numbers to two disks, one after the other, while cycle after cycle is captured.

What it wrote first may be ahead by one of what it wrote second, in every replica, and it sees no error.
"""

import asyncio
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from small_guest import READY, small_guest
from test_capture import Rig
from test_disk_layers import make
from test_running import inputs_in, machines_of, state_in

from holdfast.host.processes import Processes
from holdfast.spec.attachment import DiskAttachment, Layer
from holdfast.spec.units import MIB
from holdfast.spec.vm import DiskBus, KernelBoot, VmSpec

_SECONDS = 60.0  # that it may take to say something
_WRITER = """
n=0; while :; do n=$((n+1)); for d in vda vdb; do
printf '%8d' $n | dd of=/dev/$d bs=8 conv=notrunc,fsync 2>/dev/null || echo BROKEN;
printf '%8d' $n | dd of=/dev/$d bs=8 seek=$((n%64*8192)) conv=notrunc,fsync 2>/dev/null || echo BROKEN;
done; done &
""".replace("\n", " ")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    processes = Processes(state_in(tmp_path))
    attachments = []
    for name in ("disk0", "disk1"):
        make(tmp_path / f"{name}.qcow2")
        layer = Layer.of_file(tmp_path / f"{name}.qcow2", "qcow2", name)
        attachments.append(DiskAttachment(id=name, bus=DiskBus.VIRTIO, layers=(layer,)))
    guest, vm = await asyncio.to_thread(small_guest), str(uuid.uuid4())
    inputs = replace(
        inputs_in(tmp_path, vm),
        spec=VmSpec(cpus=1, memory=96 * MIB, boot=KernelBoot(kernel="kernel", append=guest.append)),
        disks=tuple(attachments),
        kernel=guest.kernel,
        initrd=guest.initrd,
        nics=(),
    )
    machine = await machines_of(processes).launch(inputs, None, tmp_path / "log")
    yield Rig(machine, tmp_path, processes, vm)
    await machine.kill()


async def said(rig: Rig, text: str) -> None:
    """Wait until the guest has said it on its console."""
    async with asyncio.timeout(_SECONDS):
        while text.encode() not in (rig.folder / "a,b/console.log").read_bytes():
            await asyncio.sleep(0.1)


def number(image: bytearray) -> int:
    return int(bytes(image[:8]).strip(b"\0 ") or b"0")


@pytest.mark.slow
async def test_a_guest_that_writes_all_the_time_is_captured_in_its_order(rig: Rig) -> None:
    await rig.machine.cont()
    await said(rig, READY)
    await rig.capture.attach(None)
    _, console = await asyncio.open_unix_connection(str(rig.machine.console_path))
    console.write(_WRITER.encode() + b" echo WRITING-$((40+2))\n")
    await said(rig, "WRITING-42")
    seen = []
    for turn in range(15):
        if turn == 7:
            await rig.put_layer("disk0", "disk0-1")
        await rig.cycle()
        first, second = (number(rig.replica.disks[disk]) for disk in ("disk0", "disk1"))
        assert first - second in (0, 1), (first, second)
        seen.append(first)
        await asyncio.sleep(0.2)
    assert seen == sorted(seen)
    assert len(set(seen)) > 7
    console.write(b"kill %1; wait; sync; echo STOPPED-$((40+2))\n")
    await said(rig, "STOPPED-42")
    console.write(b"dmesg | grep -ci 'i/o error' | sed s/^/ERRORS-/\n")
    await said(rig, "ERRORS-0")
    assert b"BROKEN\r" not in (rig.folder / "a,b/console.log").read_bytes()
    console.close()
    await rig.cycle()
    await rig.require_current()
    assert await asyncio.to_thread(_checked, rig.folder / "disk0-1.qcow2")


def _checked(path: Path) -> bool:
    done = subprocess.run(["qemu-img", "check", "-U", path], check=False, capture_output=True)
    return done.returncode == 0
