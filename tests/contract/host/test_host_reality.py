"""The host check against the programs that are here, and VM groups in a real cgroup2 hierarchy."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.host.cgroups import CgroupKind, Cgroups, VmGroups
from holdfast.host.check_programs import check_firmware, check_swtpm, find_program
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.spec.host import CheckStatus


def _cgroup2() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 ") and os.access(folder := left.split()[4], os.W_OK):
            return Path(folder)
    return None


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(_cgroup2() is None, reason="no cgroup2 hierarchy that we may change")
async def test_the_kernel_moves_a_process_into_its_group(child: "subprocess.Popen[bytes]") -> None:
    own = _cgroup2()
    assert own is not None
    groups = VmGroups(Cgroups(CgroupKind.V2, own, frozenset(), delegated=True))
    owner = f"vm:test-{os.getpid()}"
    folder = groups.folder(owner)
    assert folder is not None
    try:
        await groups.place(child.pid, owner)
        place = f"0::/{folder.relative_to(own)}\n"
        assert place in Path(f"/proc/{child.pid}/cgroup").read_text()
        await groups.remove(owner)
        assert folder.is_dir()  # it still has a process
        child.kill()
        await asyncio.to_thread(child.wait)
        await groups.place(child.pid, owner)  # one that is gone is no error
        await groups.remove(owner)
        assert not folder.exists()
    finally:
        child.kill()
        child.wait()
        for left in (folder, folder.parent):
            if left.is_dir() and not any(entry.is_dir() for entry in left.iterdir()):
                left.rmdir()


@pytest.mark.skipif(find_program(Path("/"), "swtpm") is None, reason="needs swtpm")
async def test_swtpm_tells_its_capabilities(tmp_path: Path) -> None:
    processes = Processes(StateFolder(tmp_path / "state", tmp_path / "run"))
    line = await check_swtpm(Path("/"), processes)
    assert line.status in (CheckStatus.OK, CheckStatus.LIMITED) and "swtpm" in line.text


@pytest.mark.skipif(not Path("/usr/share/OVMF").is_dir(), reason="needs the package ovmf")
def test_the_distribution_s_firmware_is_found() -> None:
    line = check_firmware(Path("/"))
    assert line.status is CheckStatus.OK and "OVMF_CODE" in line.text
