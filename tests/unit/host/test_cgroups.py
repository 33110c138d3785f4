"""Which hierarchy, and groups for VMs only where they are ours to make."""

import os
from pathlib import Path

import pytest
from fake_host import put

from holdfast.host.cgroups import CgroupKind, VmGroups, find_cgroups

V2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
SYSTEMD = "37 31 0:34 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
UNIFIED = "38 31 0:35 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


def service(root: Path) -> Path:
    place = "sys/fs/cgroup/system.slice/holdfast.service"
    put(
        root,
        {
            "proc/self/mountinfo": V2,
            "proc/self/cgroup": "0::/system.slice/holdfast.service\n",
            f"{place}/cgroup.controllers": "cpuset cpu io memory pids\n",
            f"{place}/cgroup.procs": "",
            f"{place}/cgroup.subtree_control": "",
        },
    )
    return root / place


def test_a_delegated_service(tmp_path: Path) -> None:
    own = service(tmp_path)
    found = find_cgroups(tmp_path)
    assert (found.kind, found.own, found.delegated) == (CgroupKind.V2, own, True)
    assert "memory" in found.controllers


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [(V1 + SYSTEMD, CgroupKind.V1), (V1 + UNIFIED, CgroupKind.HYBRID), ("", CgroupKind.NONE)],
)
async def test_elsewhere_nothing_is_made(tmp_path: Path, mounts: str, kind: CgroupKind) -> None:
    put(tmp_path, {"proc/self/mountinfo": mounts, "proc/self/cgroup": "4:memory:/x\n0::/\n"})
    before = sorted(tmp_path.rglob("*"))
    found = find_cgroups(tmp_path)
    assert (found.kind, found.delegated) == (kind, False)
    groups = VmGroups(found)
    await groups.place(os.getpid(), "vm:1")
    await groups.remove("vm:1")
    assert sorted(tmp_path.rglob("*")) == before


async def test_a_vm_gets_a_group_and_loses_it(tmp_path: Path) -> None:
    own = service(tmp_path)
    groups = VmGroups(find_cgroups(tmp_path))
    await groups.place(4711, "vm:abc")
    folder = own / "holdfast.vms" / "vm-abc"
    assert (folder / "cgroup.procs").read_text() == "4711\n"
    await groups.remove("vm:abc")  # "busy": a plain folder with a file in it cannot be removed either
    assert folder.is_dir()
    (folder / "cgroup.procs").unlink()  # the kernel's files vanish with the group
    await groups.remove("vm:abc")
    await groups.remove("vm:abc")
    assert not folder.exists()


def test_an_owner_cannot_leave_the_folder(tmp_path: Path) -> None:
    own = service(tmp_path)
    folder = VmGroups(find_cgroups(tmp_path)).folder("switch:../../x")
    assert folder is not None and folder.parent == own / "holdfast.vms"
