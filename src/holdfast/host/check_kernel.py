"""Lines of the host check about the kernel, the machine and our own rights. One function a line."""

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from holdfast.host.acceleration import kvm_obstacle
from holdfast.host.cgroups import CgroupKind, find_cgroups
from holdfast.host.kernel_modules import ModuleState, module_state
from holdfast.host.space import free_space, memory_figures
from holdfast.spec.host import AccelerationVerdict, CheckLine, CheckStatus
from holdfast.spec.units import GIB, format_size
from holdfast.spec.vm import Acceleration

_LEAST_FREE = 10 * GIB
_LEAST_SHARE = 0.1
_NO_ROOM = GIB
_NVME_OF = {"nvme_tcp": "TCP", "nvme_rdma": "RDMA"}


@dataclass(frozen=True)
class Account:
    """Whom the daemon runs as."""

    uid: int
    name: str
    groups: frozenset[str]

    @classmethod
    def current(cls) -> "Account":
        names = set()
        for gid in {os.getegid(), *os.getgroups()}:
            try:
                names.add(grp.getgrgid(gid).gr_name)
            except KeyError:
                names.add(str(gid))
        uid = os.geteuid()
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = str(uid)
        return cls(uid, name, frozenset(names))


def check_acceleration(verdict: AccelerationVerdict, root: Path) -> CheckLine:
    if verdict.acceleration is Acceleration.KVM:
        status, cure = CheckStatus.OK, ""
        text = f"KVM with CPU model {verdict.cpu_model}: {verdict.reason}"
    else:
        status, text = CheckStatus.LIMITED, f"emulation (TCG), which is slow: {verdict.reason}"
        obstacle = kvm_obstacle(root)
        cure = (
            obstacle.cure
            if obstacle
            else "Use a machine whose KVM runs ordinary guests; a nested one often does not."
        )
    return CheckLine(id="acceleration", title="Acceleration", status=status, text=text, cure=cure)


def check_privileges(account: Account) -> CheckLine:
    def line(status: CheckStatus, text: str, cure: str = "") -> CheckLine:
        return CheckLine(id="privileges", title="Privileges", status=status, text=text, cure=cure)

    if account.uid == 0:
        return line(CheckStatus.OK, "root: bridges, and a user of its own for each VM, can be had")
    text = f"ordinary user {account.name}: VMs share its user, switches are user-mode"
    if "kvm" in account.groups:
        return line(CheckStatus.LIMITED, text, "Run the daemon as root for bridges and a user for each VM.")
    return line(
        CheckStatus.LIMITED,
        f"{text}; not in the group kvm",
        f"Run `usermod -aG kvm {account.name}` and log in again, or run the daemon as root.",
    )


def check_memory(root: Path) -> CheckLine:
    total, available = memory_figures(root)
    short = available < max(2 * GIB, total * _LEAST_SHARE)
    return CheckLine(
        id="memory",
        title="Memory",
        status=CheckStatus.LIMITED if short else CheckStatus.OK,
        text=f"{format_size(available)} of {format_size(total)} are free",
        cure="Stop something, or add memory, before starting large VMs." if short else "",
    )


def check_space(state: Path) -> CheckLine:
    free, total = free_space(state)
    share = free / total if total else 0.0
    text = f"{format_size(free)} of {format_size(total)} ({share:.0%}) are free at {state}"
    status, cure = CheckStatus.OK, ""
    if free < _NO_ROOM:
        status, cure = CheckStatus.MISSING, "Free some space there, or give the daemon another state folder."
    elif free < _LEAST_FREE or share < _LEAST_SHARE:
        status, cure = CheckStatus.LIMITED, "Free some space there before images and disks grow."
    return CheckLine(id="space", title="Space", status=status, text=text, cure=cure)


def check_iommu(root: Path) -> CheckLine:
    try:
        groups = len(list((root / "sys/kernel/iommu_groups").iterdir()))
    except OSError:
        groups = 0
    return CheckLine(
        id="iommu",
        title="IOMMU",
        status=CheckStatus.OK if groups else CheckStatus.LIMITED,
        text=f"{groups} groups" if groups else "no IOMMU groups: host devices cannot be given to VMs",
        cure=""
        if groups
        else "Enable VT-d or AMD-Vi in the firmware; with Intel boot with intel_iommu=on iommu=pt.",
    )


def check_huge_pages(root: Path) -> CheckLine:
    """Reserved pages of each size, and whether transparent ones are on (admin-guide/mm of the kernel)."""

    def line(status: CheckStatus, text: str, cure: str = "") -> CheckLine:
        return CheckLine(id="huge-pages", title="Huge pages", status=status, text=text, cure=cure)

    reserved = []
    for folder in sorted((root / "sys/kernel/mm/hugepages").glob("hugepages-*kB")):
        count = int((folder / "nr_hugepages").read_text())
        free = int((folder / "free_hugepages").read_text())
        if count:
            size = format_size(int(folder.name[len("hugepages-") : -len("kB")]) * 1024)
            reserved.append(f"{count} of {size} reserved, {free} free")
    try:
        modes = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text()
        transparent = modes.partition("[")[2].partition("]")[0]
    except OSError:
        transparent = "never"
    if reserved or transparent in ("always", "madvise"):
        return line(CheckStatus.OK, "; ".join([*reserved, f"transparent ones: {transparent}"]))
    return line(
        CheckStatus.LIMITED,
        "none reserved, and transparent ones are off: guests' memory costs more time",
        "Write madvise to /sys/kernel/mm/transparent_hugepage/enabled, or reserve some with vm.nr_hugepages.",
    )


def check_cgroups(root: Path) -> CheckLine:
    def line(status: CheckStatus, text: str, cure: str = "") -> CheckLine:
        return CheckLine(id="cgroups", title="Control groups", status=status, text=text, cure=cure)

    found = find_cgroups(root)
    if found.kind is not CgroupKind.V2:
        kinds = {
            CgroupKind.V1: "version 1",
            CgroupKind.HYBRID: "hybrid: controllers in version 1",
            CgroupKind.NONE: "not mounted",
        }
        return line(
            CheckStatus.LIMITED,
            f"{kinds[found.kind]}: VMs get no group of their own",
            "Boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 at /sys/fs/cgroup.",
        )
    if not found.delegated:
        return line(
            CheckStatus.LIMITED,
            "version 2, but our own group is not delegated to us",
            "Run the daemon by its systemd unit (Delegate=yes), or as root.",
        )
    return line(CheckStatus.OK, f"version 2, delegated: {', '.join(sorted(found.controllers)) or 'none'}")


def check_nvme_of(root: Path) -> CheckLine:
    states = {name: module_state(root, name) for name in _NVME_OF}
    usable = [_NVME_OF[name] for name, state in states.items() if state is not ModuleState.ABSENT]
    absent = [name for name, state in states.items() if state is ModuleState.ABSENT]
    text = ", ".join(f"{name} {state.value}" for name, state in states.items())
    if not absent:
        return CheckLine(id="nvme-of", title="NVMe over fabrics", status=CheckStatus.OK, text=text)
    return CheckLine(
        id="nvme-of",
        title="NVMe over fabrics",
        status=CheckStatus.LIMITED if usable else CheckStatus.MISSING,
        text=text,
        cure=f"Use a kernel that has {', '.join(absent)}; the distribution's full (not cloud) kernel does.",
    )


def check_clock(synchronised: bool) -> CheckLine:
    return CheckLine(
        id="clock",
        title="Clock",
        status=CheckStatus.OK if synchronised else CheckStatus.LIMITED,
        text="synchronised" if synchronised else "the kernel says that nothing synchronises it",
        cure="" if synchronised else "Install and start chrony or systemd-timesyncd.",
    )
