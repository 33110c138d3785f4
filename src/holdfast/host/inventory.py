"""What the host consists of, read from /sys and /proc: CPUs and their kinds, NUMA nodes, PCI devices.

Read anew at each call and kept nowhere. Formats: Documentation/admin-guide/cputopology.rst and
Documentation/ABI/{stable,testing}/sysfs-* of the Linux kernel.
"""

import asyncio
import platform
import re
from pathlib import Path

from holdfast.host.pci_names import read_pci_names
from holdfast.host.space import memory_figures
from holdfast.spec.host import Cpu, HostDevice, HostInventory, NumaNode

_LARGEST_CPU = 65_535
_EFFICIENT_BELOW = 0.8  # of the largest capacity; favoured cores of one kind differ by less
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_BRIDGE = 0x06


async def inventory(root: Path = Path("/")) -> HostInventory:
    """The whole inventory, read off the event loop (some ms; hundreds on hosts with many CPUs)."""
    return await asyncio.to_thread(read_inventory, root)


def read_inventory(root: Path = Path("/")) -> HostInventory:
    total, available = memory_figures(root)
    return HostInventory(
        name=_text(root / "proc/sys/kernel/hostname") or platform.node(),
        kernel=_text(root / "proc/sys/kernel/osrelease") or platform.release(),
        cpu_model=_cpu_model(root),
        cpus=read_cpus(root),
        nodes=read_nodes(root),
        memory=total,
        memory_available=available,
        devices=read_devices(root),
    )


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """CPU numbers of a kernel list such as `0-3,8,10-11`.

    Raises:
        ValueError: it is no such list, or names a CPU beyond 65535.
    """
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high <= _LARGEST_CPU:
            raise ValueError(f"not a list of CPUs: {text[:80]!r}")
        cpus.extend(range(low, high + 1))
    return tuple(cpus)


def read_cpus(root: Path = Path("/")) -> tuple[Cpu, ...]:
    """Present CPUs. An offline one has core and socket -1: the kernel does not tell them."""
    folder = root / "sys/devices/system/cpu"
    present = parse_cpu_list(_text(folder / "present"))
    online = set(parse_cpu_list(_text(folder / "online")))
    kinds = _cpu_kinds(root, present)
    return tuple(
        Cpu(
            id=cpu,
            node=_node_of(folder / f"cpu{cpu}"),
            core=_number(folder / f"cpu{cpu}/topology/core_id", -1),
            socket=_number(folder / f"cpu{cpu}/topology/physical_package_id", -1),
            kind=kinds[cpu],
            online=cpu in online,
        )
        for cpu in present
    )


def _cpu_kinds(root: Path, cpus: tuple[int, ...]) -> dict[int, str]:
    """Hybrid x86 names its kinds by their performance counters; others by capacity or base frequency."""
    devices = root / "sys/devices"
    performance = set(parse_cpu_list(_text(devices / "cpu_core/cpus")))
    efficiency = set(parse_cpu_list(_text(devices / "cpu_atom/cpus")))
    efficiency |= set(parse_cpu_list(_text(devices / "cpu_lowpower/cpus")))
    if performance and efficiency:
        return {cpu: "efficiency" if cpu in efficiency else "performance" for cpu in cpus}
    for measure in ("cpu_capacity", "cpufreq/base_frequency"):
        values = {cpu: _number(devices / f"system/cpu/cpu{cpu}/{measure}", 0) for cpu in cpus}
        known = [value for value in values.values() if value > 0]
        if known and min(known) < _EFFICIENT_BELOW * max(known):
            border = _EFFICIENT_BELOW * max(known)
            return {cpu: "efficiency" if 0 < values[cpu] < border else "performance" for cpu in cpus}
    return dict.fromkeys(cpus, "uniform")


def _node_of(folder: Path) -> int:
    for entry in folder.glob("node*"):
        if entry.name[4:].isdigit():
            return int(entry.name[4:])
    return 0


def read_nodes(root: Path = Path("/")) -> tuple[NumaNode, ...]:
    """NUMA nodes; a kernel without NUMA is one node with everything."""
    nodes = []
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        figures = dict(re.findall(r"(MemTotal|MemFree):\s+(\d+) kB", _text(folder / "meminfo")))
        nodes.append(
            NumaNode(
                id=int(folder.name[4:]),
                cpus=parse_cpu_list(_text(folder / "cpulist")),
                memory=int(figures.get("MemTotal", 0)) * 1024,
                free=int(figures.get("MemFree", 0)) * 1024,
            )
        )
    if not nodes:
        total, available = memory_figures(root)
        online = parse_cpu_list(_text(root / "sys/devices/system/cpu/online"))
        nodes.append(NumaNode(id=0, cpus=online, memory=total, free=available))
    return tuple(sorted(nodes, key=lambda node: node.id))


def read_devices(root: Path = Path("/")) -> tuple[HostDevice, ...]:
    """PCI devices that do work; bridges are left out, since no VM can be given one."""
    found = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        kind = _number(folder / "class", -1)
        if _ADDRESS.fullmatch(folder.name) and kind >> 16 not in (_BRIDGE, -1):
            ids = (_number(folder / "vendor", 0), _number(folder / "device", 0))
            found.append((folder, kind, ids))
    names = read_pci_names(root, (ids for _, _, ids in found))
    return tuple(
        HostDevice(
            address=folder.name,
            kind=_device_kind(kind),
            vendor=names[ids][0],
            device=names[ids][1],
            driver=_link(folder / "driver"),
            iommu_group=int(group) if (group := _link(folder / "iommu_group") or "").isdigit() else None,
        )
        for folder, kind, ids in found
    )


def _device_kind(code: int) -> str:
    """From the class code, PCI Code and ID Assignment Specification, section 1."""
    if code >> 8 == 0x0108:
        return "nvme"
    return {0x01: "storage", 0x02: "network", 0x03: "gpu"}.get(code >> 16, "other")


def _cpu_model(root: Path) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _link(path: Path) -> str | None:
    return path.readlink().name if path.is_symlink() else None


def _number(path: Path, default: int) -> int:
    try:
        return int(_text(path), 0)
    except ValueError:
        return default


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
