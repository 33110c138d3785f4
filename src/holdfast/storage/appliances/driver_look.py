"""Whether Linux on a disk could find its root on a virtio disk, found out before anything is converted.

    partitions ─▶ ext4, XFS ─▶ /boot: configuration of the kernel, initial RAM disk ─▶ names of modules in it

File systems are read by ourselves, only as far as these files need; what is compressed is unpacked by
its own program, a user without rights. The newest kernel is looked at: it is the one that starts.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from holdfast.spec.units import MIB
from holdfast.storage.formats.ext4 import Ext4
from holdfast.storage.formats.initramfs import Front, ModuleSearch, front
from holdfast.storage.formats.partitions import Partition
from holdfast.storage.formats.qcow2_chain import Bytes
from holdfast.storage.formats.runs import NotReadable, Run
from holdfast.storage.formats.xfs import Xfs

NEEDED = frozenset({"virtio_blk", "virtio_pci"})
LARGEST_INITRAMFS = 256 * MIB
_LARGEST_CONFIGURATION = 2 * MIB
_MOST_PARTITIONS = 16
_FOLDERS = ("boot", "")
"""Of the root's file system, and of one that is mounted at /boot."""
_INITRAMFS = re.compile(r"(?:initrd\.img|initramfs|initrd)-([A-Za-z0-9._+~-]{1,80}?)(?:\.img)?", re.ASCII)
_PASSED_OVER = re.compile(r"rescue|kdump|fallback|\.(?:bak|old|dpkg-\w+|old-dkms)$")
_BUILT_IN = re.compile(r"^CONFIG_(VIRTIO_BLK|VIRTIO_PCI)=y$", re.MULTILINE)
_LONGEST_NAME = 100


class Drivers(StrEnum):
    PRESENT = "present"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class DriverLook:
    drivers: Drivers
    text: str
    """What was looked at, or why it could not be."""


@dataclass
class Kernel:
    """What was found of one kernel's version."""

    version: str
    initramfs: str = ""
    """Name of its file; empty where there is none."""
    runs: list[Run] = field(default_factory=list)
    """Where that file lies on the disk."""
    built_in: frozenset[str] = frozenset()


def newest_kernel(disk: Bytes, found: Sequence[Partition]) -> Kernel | None:
    """Of all file systems that can be read; None where they have none."""
    kernels: dict[str, Kernel] = {}
    places = [(part.start, part.size) for part in found[:_MOST_PARTITIONS]] or [(0, disk.size)]
    for start, size in places:
        for kind in (Ext4, Xfs):
            with contextlib.suppress(NotReadable):
                files = kind(disk, start, size)
                for folder in _FOLDERS:
                    _in_folder(files, folder, kernels)
    with_files = [kernel for kernel in kernels.values() if kernel.initramfs or kernel.built_in]
    return max(with_files, key=lambda kernel: _natural(kernel.version), default=None)


def _in_folder(files: Ext4 | Xfs, folder: str, kernels: dict[str, Kernel]) -> None:
    for name in files.names(folder):
        match = _INITRAMFS.fullmatch(name)
        if match and not _PASSED_OVER.search(name):
            with contextlib.suppress(NotReadable):
                runs = files.runs(f"{folder}/{name}", LARGEST_INITRAMFS)
                if runs:
                    kernel = kernels.setdefault(match[1], Kernel(match[1]))
                    kernel.initramfs, kernel.runs = name[:_LONGEST_NAME], runs
        elif name.startswith("config-") and len(name) <= _LONGEST_NAME:
            with contextlib.suppress(NotReadable):
                text = files.read(f"{folder}/{name}", _LARGEST_CONFIGURATION) or b""
                kernel = kernels.setdefault(name[7:], Kernel(name[7:]))
                kernel.built_in = frozenset(
                    each.lower() for each in _BUILT_IN.findall(text.decode(errors="replace"))
                )


def _natural(version: str) -> list[tuple[int, int, str]]:
    """6.10 after 6.9."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.findall(r"\d{1,18}|[^\d]+", version, re.ASCII)
    ]


def look_into(path: Path, packed: Path, search: ModuleSearch) -> Front:
    """The front of an initial RAM disk; its compressed part, if there is one, goes into `packed`.

    Raises NotInitramfs.
    """
    with path.open("rb") as file:
        found = front(file.fileno(), os.fstat(file.fileno()).st_size, search)
        if found.compression:
            file.seek(found.offset)
            with packed.open("wb") as target:
                shutil.copyfileobj(file, target, MIB)
    return found


def judged(kernel: Kernel, modules: Set[str], whole: bool) -> DriverLook:
    """`modules`: those in its initial RAM disk. `whole`: all of it was read."""
    missing = NEEDED - kernel.built_in - modules
    if not kernel.initramfs and missing:
        return DriverLook(Drivers.UNKNOWN, f"kernel {kernel.version!r} has no initial RAM disk beside it")
    if not missing:
        where = f"initial RAM disk {kernel.initramfs!r}" if modules & NEEDED else f"kernel {kernel.version!r}"
        return DriverLook(Drivers.PRESENT, f"the {where} has the drivers of virtio disks")
    if not whole:
        return DriverLook(Drivers.UNKNOWN, f"the initial RAM disk {kernel.initramfs!r} cannot be read")
    names = ", ".join(sorted(missing))
    return DriverLook(Drivers.MISSING, f"the initial RAM disk {kernel.initramfs!r} has no driver {names}")
