"""The probe with real QEMU: it must pass where a guest runs (TCG) and end in time where none does."""

import asyncio
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from holdfast.host.acceleration import AccelerationProbe, kvm_obstacle
from holdfast.host.firmware import find_firmware
from holdfast.host.folders import StateFolder
from holdfast.host.probe_guest import (
    LIMIT,
    Outcome,
    ProbeGuest,
    linux_guest,
    ovmf_guest,
    readable_kernels,
    run_probe,
)
from holdfast.host.processes import Processes
from holdfast.spec.vm import Acceleration

QEMU = "qemu-system-x86_64"

pytestmark = pytest.mark.skipif(shutil.which(QEMU) is None, reason="needs QEMU")


class Memory:
    def __init__(self) -> None:
        self.facts: dict[str, dict[str, Any]] = {}

    async def get(self, key: str) -> dict[str, Any] | None:
        return self.facts.get(key)

    async def put(self, key: str, value: dict[str, Any]) -> None:
        self.facts[key] = value


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(StateFolder(tmp_path / "state", tmp_path / "run"))


def firmware_guest() -> ProbeGuest:
    builds = [build for build in find_firmware() if build.secure_boot]
    if not builds:
        pytest.skip("needs OVMF with Secure Boot")
    return ovmf_guest(builds[0])


async def test_firmware_with_secure_boot_proves_itself_under_tcg(processes: Processes) -> None:
    result = await run_probe(
        processes,
        QEMU,
        firmware_guest(),
        accelerator=Acceleration.TCG,
        cpu_model="qemu64",
        limit=60,
    )
    assert result.outcome is Outcome.RAN, result
    assert processes.find() == []


async def test_a_kernel_proves_itself_under_tcg(processes: Processes) -> None:
    given = [Path(path) for path in os.environ.get("HOLDFAST_PROBE_KERNEL", "").split(":") if path]
    kernels = readable_kernels(given)
    if not kernels:
        pytest.skip("no kernel at hand; name one in HOLDFAST_PROBE_KERNEL")
    result = await run_probe(
        processes,
        QEMU,
        linux_guest(kernels[0]),
        accelerator=Acceleration.TCG,
        cpu_model="qemu64",
        limit=60,
    )
    assert result.outcome is Outcome.RAN, result
    assert processes.find() == []


async def test_a_silent_guest_is_killed_at_the_limit(processes: Processes) -> None:
    firmware = firmware_guest()
    silent = ProbeGuest(firmware.name, firmware.title, ("-machine", "q35", "-S"), firmware.proof)
    begun = time.monotonic()
    result = await run_probe(
        processes, QEMU, silent, accelerator=Acceleration.TCG, cpu_model="qemu64", limit=1
    )
    assert result.outcome is Outcome.HUNG
    assert time.monotonic() - begun < 4
    assert processes.find() == []


async def test_a_refusal_of_qemu_is_told_in_its_words(processes: Processes) -> None:
    result = await run_probe(
        processes,
        QEMU,
        firmware_guest(),
        accelerator=Acceleration.TCG,
        cpu_model="no-such-model",
        limit=20,
    )
    assert result.outcome is Outcome.BROKE
    assert "no-such-model" in result.detail
    assert processes.find() == []


async def test_cancelling_a_probe_leaves_nothing_behind(processes: Processes) -> None:
    task = asyncio.create_task(
        run_probe(processes, QEMU, firmware_guest(), accelerator=Acceleration.TCG, cpu_model="qemu64")
    )
    while not processes.find(role="probe"):
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes.find() == []


@pytest.mark.skipif(kvm_obstacle() is not None, reason="/dev/kvm does not open here")
async def test_this_machine_gets_a_verdict_in_time_and_remembers_it(processes: Processes) -> None:
    firmware_guest()
    facts = Memory()
    begun = time.monotonic()
    verdicts: Sequence[Any] = await asyncio.gather(
        *(AccelerationProbe(processes, facts).verdict(), AccelerationProbe(processes, facts).verdict())
    )
    assert time.monotonic() - begun < 4 * (LIMIT + 5)
    verdict = verdicts[0]
    print(verdict)
    assert verdict.reason and verdict.probe in ("ovmf", "linux")
    assert (verdict.acceleration is Acceleration.KVM) == bool(verdict.cpu_model)
    assert list(facts.facts) == [verdict.key]
    assert processes.find() == []
    begun = time.monotonic()
    again = AccelerationProbe(processes, facts)
    assert (await again.verdict()).acceleration is verdict.acceleration
    assert time.monotonic() - begun < 2  # asking QEMU's version is all that is left to do
    begun = time.monotonic()
    assert await again.verdict() is again.known
    assert time.monotonic() - begun < 0.1
