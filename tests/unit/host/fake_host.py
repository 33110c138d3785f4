"""A faithful little host below a folder: the files of /sys and /proc as real kernels write them."""

import os
from pathlib import Path


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def link(root: Path, name: str, target: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, path)


def program(root: Path, name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def _pci(root: Path, address: str, ids: tuple[str, str, str], driver: str | None, group: int | None) -> None:
    folder = f"sys/bus/pci/devices/{address}"
    vendor, device, code = ids
    put(root, {f"{folder}/vendor": f"{vendor}\n", f"{folder}/device": f"{device}\n", f"{folder}/class": code})
    if driver:
        link(root, f"{folder}/driver", f"../../../../bus/pci/drivers/{driver}")
    if group is not None:
        link(root, f"{folder}/iommu_group", f"../../../../kernel/iommu_groups/{group}")
        (root / f"sys/kernel/iommu_groups/{group}").mkdir(parents=True, exist_ok=True)


def hybrid_host(root: Path) -> Path:
    """Two P cores with two threads each (0-3) and four E cores (4-7); CPU 7 is offline; two nodes."""
    put(
        root,
        {
            "proc/sys/kernel/hostname": "rock\n",
            "proc/sys/kernel/osrelease": "6.12.0-amd64\n",
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5\nflags\t\t: fpu vmx\n",
            "proc/meminfo": "MemTotal:       33554432 kB\nMemFree:  9 kB\nMemAvailable:   16777216 kB\n",
            "sys/devices/system/cpu/present": "0-7\n",
            "sys/devices/system/cpu/online": "0-6\n",
            "sys/devices/cpu_core/cpus": "0-3\n",
            "sys/devices/cpu_atom/cpus": "4-7\n",
            "usr/share/misc/pci.ids": (
                "# comment\n144d  Samsung Electronics Co Ltd\n\ta808  NVMe SSD Controller SM981\n"
                "\t\t144d a801  SSD 970\n10de  NVIDIA Corporation\n\t2684  AD102 [GeForce RTX 4090]\n"
                "8086  Intel Corporation\n\t15f3  Ethernet Controller I225-V\nC 01  Mass storage controller\n"
                "\t08  Non-Volatile memory controller\n"
            ),
        },
    )
    for cpu in range(8):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        (root / folder / f"node{cpu // 4}").mkdir(parents=True)
        if cpu != 7:
            core = cpu // 2 * 4 if cpu < 4 else cpu + 4
            put(
                root,
                {f"{folder}/topology/core_id": f"{core}\n", f"{folder}/topology/physical_package_id": "0\n"},
            )
    for node, cpus in ((0, "0-3"), (1, "4-6")):
        put(
            root,
            {
                f"sys/devices/system/node/node{node}/cpulist": f"{cpus}\n",
                f"sys/devices/system/node/node{node}/meminfo": (
                    f"Node {node} MemTotal:       16777216 kB\nNode {node} MemFree:        8388608 kB\n"
                ),
            },
        )
    _pci(root, "0000:00:00.0", ("0x8086", "0xa703", "0x060000\n"), None, 0)
    _pci(root, "0000:01:00.0", ("0x10de", "0x2684", "0x030000\n"), "vfio-pci", 12)
    _pci(root, "0000:02:00.0", ("0x144d", "0xa808", "0x010802\n"), "nvme", 13)
    _pci(root, "0000:03:00.0", ("0x8086", "0x15f3", "0x020000\n"), "igc", None)
    _pci(root, "0000:04:00.0", ("0xabcd", "0x0001", "0x010601\n"), None, 14)
    return root
