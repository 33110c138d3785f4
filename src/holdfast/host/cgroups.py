"""Control groups: what kind this host has, and a group of its own for each VM where we may make one.

The kernel owns the groups; an empty one is removed when its VM goes. No controller is switched on
below our own group: a group that hands out controllers may hold no process itself (cgroup v2,
"no internal process constraint"), and a daemon restarted by systemd is put back into just that one.
"""

import asyncio
import contextlib
import errno
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_GROUP = "holdfast.vms"


class CgroupKind(StrEnum):
    V2 = "v2"
    V1 = "v1"
    HYBRID = "hybrid"
    """v1 controllers, with a v2 hierarchy beside them."""
    NONE = "none"


@dataclass(frozen=True)
class Cgroups:
    kind: CgroupKind
    own: Path | None
    """Our own group's folder in the v2 hierarchy; None where there is none."""
    controllers: frozenset[str]
    """v2 controllers available in our own group."""
    delegated: bool
    """Whether we may make groups below our own and move our children there."""


def find_cgroups(root: Path = Path("/")) -> Cgroups:
    """Read the kind of hierarchy and our place in it: mountinfo and cgroup of proc(5), cgroups(7)."""
    unified, legacy = _mounts(root)
    if unified is None:
        return Cgroups(CgroupKind.V1 if legacy else CgroupKind.NONE, None, frozenset(), False)
    own = unified
    for line in _lines(root / "proc/self/cgroup"):
        number, _, place = line.partition("::")
        if number == "0":
            own = unified / place.lstrip("/")
    controllers = frozenset(" ".join(_lines(own / "cgroup.controllers")).split())
    kind = CgroupKind.HYBRID if legacy else CgroupKind.V2
    delegated = kind is CgroupKind.V2 and all(
        os.access(path, os.W_OK) for path in (own, own / "cgroup.procs", own / "cgroup.subtree_control")
    )
    return Cgroups(kind, own, controllers, delegated)


def _mounts(root: Path) -> tuple[Path | None, bool]:
    """Where cgroup2 is mounted, and whether a v1 hierarchy with a controller is mounted too."""
    unified, legacy = None, False
    for line in filter(lambda text: " - " in text, _lines(root / "proc/self/mountinfo")):
        left, _, right = line.partition(" - ")
        kind, options = right.split(maxsplit=1)[0], right.rpartition(" ")[2]
        if kind == "cgroup2" and unified is None:
            unified = root / left.split()[4].lstrip("/")
        if kind == "cgroup" and "name=" not in options:
            legacy = True
    return unified, legacy


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


class VmGroups:
    """Groups of the VMs' processes. Where groups are not ours to make, nothing happens."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._parent = cgroups.own / _GROUP if cgroups.delegated and cgroups.own else None

    def folder(self, owner: str) -> Path | None:
        """The group of an owner such as `vm:<id>`; None where there are no groups."""
        return self._parent / owner.replace(":", "-").replace("/", "-") if self._parent else None

    async def place(self, pid: int, owner: str) -> None:
        """Move a process, and what it starts from now on, into its owner's group."""
        folder = self.folder(owner)
        if folder is not None:
            await asyncio.to_thread(_place, pid, folder)

    async def remove(self, owner: str) -> None:
        """Remove an owner's group. One that still has processes, or is not there, is left alone."""
        folder = self.folder(owner)
        if folder is not None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(folder.rmdir)


def _place(pid: int, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").write_text(f"{pid}\n")
    except OSError as error:
        # A group is a convenience: its lack must not keep a VM from running.
        if error.errno not in (errno.ESRCH, errno.EACCES, errno.EPERM, errno.EBUSY, errno.EOPNOTSUPP):
            raise
