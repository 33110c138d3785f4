"""The capabilities of the real QEMU, and of programs that only pretend to be one."""

import json
import os
import shutil
import stat
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.host.check_programs import QEMU_DEVICES, check_qemu
from holdfast.host.processes import Processes
from holdfast.machine.capabilities import CapabilityProbe, QemuMissing, QemuTooOld, QemuUnanswering
from holdfast.machine.io_uring import io_uring_usable
from holdfast.spec.host import CheckStatus

real = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")


class Memory:
    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.puts = 0

    async def get(self, key: str) -> dict[str, Any] | None:
        return json.loads(self.kept[key]) if key in self.kept else None

    async def put(self, key: str, value: dict[str, Any]) -> None:
        self.puts += 1
        self.kept[key] = json.dumps(value)


@pytest.fixture
def processes() -> Processes:
    return Processes(SimpleNamespace(mark=uuid.uuid4().hex))  # type: ignore[arg-type]


def pretender(path: Path, text: str) -> str:
    file = path / "qemu"
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def script(version: tuple[int, int, int]) -> str:
    major, minor, micro = version
    answers = {
        "query-version": {"qemu": {"major": major, "minor": minor, "micro": micro}},
        "query-machines": [{"name": f"pc-q35-{v}", "cpu-max": 8} for v in ("9.2", "10.0", "7.2")],
        "qom-list-types": [{"name": "nvme"}],
        "query-kvm": {"present": False, "enabled": False},
        "query-qmp-schema": [{"name": "quit", "meta-type": "command", "arg-type": "0"}],
    }
    lines = [json.dumps({"id": name, "return": value}) for name, value in answers.items()]
    return "head -n 6 >/dev/null; cat <<'E'\n" + "\n".join([*lines, '{"event": "SHUTDOWN"}']) + "\nE\n"


@real
async def test_the_real_one_and_its_memory(processes: Processes) -> None:
    memory = Memory()
    found = await CapabilityProbe(processes, memory).get()
    assert found.version >= (7, 2, 0)
    assert found.machine_type.startswith(f"pc-q35-{found.version[0]}.")
    assert found.max_cpus >= 255
    assert found.has_device("virtio-blk-pci")
    assert not found.has_device("no-such-device")
    assert not found.has_device("pci-device")  # abstract: nothing can be made of it
    assert found.has_command("blockdev-add")
    assert not found.has_command("SHUTDOWN")
    assert found.screendump_png
    assert found.mapped_ram is (found.version >= (9, 0, 0))
    assert found.file_migration is (found.version >= (8, 2, 0))
    assert found.io_uring <= io_uring_usable()
    missing = [name for name in QEMU_DEVICES if not found.has_device(name)]
    assert (check_qemu(found).status is CheckStatus.OK) is (not missing)
    again = CapabilityProbe(processes, memory)
    before = time.monotonic()
    assert await again.get() == found
    assert time.monotonic() - before < 0.1
    assert memory.puts == 1
    assert processes.find() == []


@real
async def test_io_uring_needs_the_host_too(processes: Processes) -> None:
    memory = Memory()
    assert not (await CapabilityProbe(processes, memory, host_has_io_uring=lambda: False).get()).io_uring
    (kept,) = (json.loads(text) for text in memory.kept.values())
    assert (await CapabilityProbe(processes, memory, host_has_io_uring=lambda: True).get()).io_uring is kept[
        "io_uring"
    ]


async def test_a_replaced_file_is_asked_again(processes: Processes, tmp_path: Path) -> None:
    memory = Memory()
    probe = CapabilityProbe(processes, memory, pretender(tmp_path, script((10, 0, 2))))
    found = await probe.get()
    assert (found.version, found.machine_type, found.max_cpus) == ((10, 0, 2), "pc-q35-10.0", 8)
    assert not (found.mapped_ram or found.io_uring or found.kvm)
    pretender(tmp_path, script((10, 1, 0)))
    assert (await probe.get()).version == (10, 1, 0)
    await probe.get()
    assert memory.puts == 2


async def test_an_old_one_is_refused(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(QemuTooOld) as caught:
        await CapabilityProbe(processes, Memory(), pretender(tmp_path, script((7, 1, 9)))).get()
    assert caught.value.value == [7, 1, 9]


@pytest.mark.parametrize("text", ["echo broken >&2; exit 1", "echo '[1]'", "echo '{}'", "echo nonsense"])
async def test_one_that_says_nothing_useful(processes: Processes, tmp_path: Path, text: str) -> None:
    memory = Memory()
    with pytest.raises(QemuUnanswering) as caught:
        await CapabilityProbe(processes, memory, pretender(tmp_path, text)).get()
    assert ("broken" in caught.value.detail["stderr"]) is ("broken" in text)
    assert not memory.kept


async def test_none_at_all(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(QemuMissing):
        await CapabilityProbe(processes, Memory(), str(tmp_path / "absent")).get()


def test_io_uring_that_is_forbidden(tmp_path: Path) -> None:
    setting = tmp_path / "proc/sys/kernel/io_uring_disabled"
    setting.parent.mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    for text in ("1\n", "2\n"):
        setting.write_text(text)
        assert not io_uring_usable(tmp_path)
    setting.write_text("0\n")
    usable = io_uring_usable(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    setting.unlink()
    assert io_uring_usable(tmp_path) is usable
