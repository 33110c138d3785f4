"""Pools: where the volumes of VMs' disks lie, and what is known of each."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.vm import VolumeFormat

_LONGEST_PATH = 1024
LOCAL = "local"
"""Name of the pool that is always there: each VM's own folder."""


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise ValueError(f"{str(path)[:80]!r} is no absolute path without `..`")
    if len(str(path)) > _LONGEST_PATH:
        raise ValueError(f"a path has at most {_LONGEST_PATH} characters")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class PoolKind(StrEnum):
    DIRECTORY = "directory"
    LVM_THIN = "lvm-thin"
    BLOCK_DEVICE = "block-device"
    NFS = "nfs"
    RBD = "rbd"


class DirectoryPoolSpec(Frozen):
    """Files in a directory of this host, whatever file system it is on."""

    kind: Literal[PoolKind.DIRECTORY] = PoolKind.DIRECTORY
    path: AbsolutePath
    format: VolumeFormat = VolumeFormat.QCOW2
    """Of new disks that stand alone; those over an image, and layers above others, are qcow2."""

    @property
    def target(self) -> str:
        return str(self.path)


LvmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9+_][A-Za-z0-9+_.-]{0,126}$")]
"""lvm(8), "VALID NAMES"."""


class LvmThinPoolSpec(Frozen):
    """Thin volumes of a thin pool that exists (lvmthin(7))."""

    kind: Literal[PoolKind.LVM_THIN] = PoolKind.LVM_THIN
    group: LvmName
    thin_pool: LvmName

    @property
    def target(self) -> str:
        return f"{self.group}/{self.thin_pool}"


class BlockDevicePoolSpec(Frozen):
    """A block device that is the pool's alone; a thin pool is made on it."""

    kind: Literal[PoolKind.BLOCK_DEVICE] = PoolKind.BLOCK_DEVICE
    device: AbsolutePath

    @property
    def target(self) -> str:
        return str(self.device)


class NfsPoolSpec(Frozen):
    """A directory that an NFS server exports, mounted by the daemon."""

    kind: Literal[PoolKind.NFS] = PoolKind.NFS
    server: Annotated[str, Field(pattern=r"^[A-Za-z0-9\[:][A-Za-z0-9.:%_\]-]{0,252}$")]
    """Name or address; IPv6 in brackets."""
    export: AbsolutePath
    format: VolumeFormat = VolumeFormat.QCOW2

    @property
    def target(self) -> str:
        return f"{self.server}:{self.export}"


CephName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$")]


class RbdPoolSpec(Frozen):
    """Images of a Ceph cluster's pool, reached by QEMU's own client."""

    kind: Literal[PoolKind.RBD] = PoolKind.RBD
    ceph_pool: CephName
    user: CephName = "admin"
    """Ceph's client name without `client.`."""
    conf: AbsolutePath = Path("/etc/ceph/ceph.conf")
    """Names the cluster's monitors; the VMs' users read it."""
    keyring: AbsolutePath
    """File on this host with that client's key; only the daemon reads it."""

    @property
    def target(self) -> str:
        return f"rbd:{self.ceph_pool}"


PoolSpec = Annotated[
    DirectoryPoolSpec | LvmThinPoolSpec | BlockDevicePoolSpec | NfsPoolSpec | RbdPoolSpec,
    Field(discriminator="kind"),
]
"""What a pool is made of; never changed once it is made."""


class PoolCreate(Frozen):
    name: Name
    spec: PoolSpec
    erase: bool = False
    """Of a block device: what is on it may be destroyed."""


class PoolHealth(StrEnum):
    AVAILABLE = "available"
    FULL = "full"
    """Next to nothing is left; a VM that writes something new pauses."""
    VANISHED = "vanished"
    """It cannot be reached or written to now; VMs that need it pause, and go on once it is back."""


class PoolVolumes(Frozen):
    """The volumes of one disk."""

    vm: str
    disk: str
    names: tuple[str, ...]
    """Top first."""
    size: int
    """Bytes the guest sees."""
    used: int | None
    """Bytes that they take up; None: it is not known now."""


class PoolSummary(Frozen):
    """One line of a list; figures in bytes, None where the pool cannot be asked now."""

    name: str
    kind: PoolKind
    target: str
    """The path, device or address that it is on."""
    created: datetime | None
    """None: it was always there."""
    health: PoolHealth
    reason: str = ""
    """Why it is not available."""
    capacity: int | None
    used: int | None
    free: int | None
    provisioned: int
    """What the disks in it could come to take, by their sizes; may be more than the capacity."""


class PoolView(PoolSummary):
    spec: PoolSpec
    volumes: tuple[PoolVolumes, ...]
