"""What a kind of pool must be able to do, and the words that all kinds share.

A volume is made under the name of its draft and published once it is whole, so what has a volume's
name is a volume. Everything here may be asked again after a crash.

    allocate ─▶ (written by qemu-img) ─▶ publish ─▶ remove
        └───────────── discard ◀── on any failure

A kind over the network, such as NVMe over Fabrics, connects in `open` and gives block devices as
places.
"""

import re
from dataclasses import dataclass
from typing import Protocol

from holdfast.host.processes import Identity
from holdfast.host.space import NoSpace
from holdfast.spec.attachment import Place
from holdfast.spec.errors import Conflict, InvalidInput, Unsupported
from holdfast.spec.pool import PoolHealth, PoolSpec
from holdfast.spec.units import GIB, MIB, format_size
from holdfast.spec.vm import VolumeFormat

ENOUGH = 4 * MIB
"""Bytes that must be free before a guest that wrote into a full pool is let on."""
_VOLUME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


class BadVolumeName(InvalidInput):
    id = "bad-volume-name"


class PoolVanished(Conflict):
    id = "pool-vanished"


class FormatNotHeld(Unsupported):
    id = "format-not-held"


class VolumesInTheWay(Conflict):
    id = "volumes-in-the-way"


@dataclass(frozen=True)
class VolumeId:
    """One volume of a pool. Raises BadVolumeName where `name` could be a path or an option."""

    vm: str
    name: str
    format: VolumeFormat = VolumeFormat.QCOW2

    def __post_init__(self) -> None:
        if not _VOLUME.fullmatch(self.name):
            raise BadVolumeName(
                f"{self.name[:80]!r} is not the name of a volume",
                value=self.name[:80],
                cure="Names of volumes are lower-case letters, digits and dashes.",
            )


@dataclass(frozen=True)
class PoolState:
    """What was found when a pool was asked. Bytes; None where it did not tell."""

    health: PoolHealth
    reason: str = ""
    capacity: int | None = None
    free: int | None = None


def state_of(capacity: int, free: int) -> PoolState:
    """Full: less than a hundredth is left, and less than a GiB, or not enough for a guest to go on."""
    full = free < max(min(capacity // 100, GIB), ENOUGH)
    reason = "next to no space is left" if full else ""
    return PoolState(PoolHealth.FULL if full else PoolHealth.AVAILABLE, reason, capacity, free)


def vanished(name: str, reason: str) -> PoolVanished:
    return PoolVanished(
        f"the pool {name!r} cannot be used now: {reason}",
        value=name,
        cure=f"Bring its storage back; look with `holdfast pool show {name}`.",
    )


async def require_room(pool: "Pool", room: int) -> None:
    """Pass where a pool can be written to and has `room` bytes. Raises PoolVanished, NoSpace."""
    state = await pool.state()
    if state.health is PoolHealth.VANISHED:
        raise vanished(pool.name, state.reason)
    if state.free is not None and state.free < room:
        raise NoSpace(
            f"{format_size(room)} are needed in the pool {pool.name!r},"
            f" and only {format_size(state.free)} are free",
            value=room,
            cure="Give it more space, or choose another pool.",
            detail={"pool": pool.name, "free": state.free},
        )


def device_size(size: int) -> int:
    """Bytes of a device whose qcow2 shows `size`: tables, reference counts and bitmaps beside the data."""
    return size + size // 1024 + 64 * MIB


def require_qcow2(pool: str, volume: VolumeId) -> None:
    """For kinds whose volumes are longer than their disks. Raises FormatNotHeld."""
    if volume.format is not VolumeFormat.QCOW2:
        raise FormatNotHeld(
            f"the pool {pool!r} holds no {volume.format} volumes",
            value=volume.format,
            cure="Choose a pool of kind directory or nfs.",
        )


class Pool(Protocol):
    """One pool. Methods that touch it raise PoolVanished where it is not there."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> PoolSpec: ...

    @property
    def format(self) -> VolumeFormat:
        """Of new volumes that stand alone."""
        ...

    async def make(self) -> None:
        """Take what the pool is on into use; run again it completes what was begun."""
        ...

    async def open(self) -> None:
        """Connect it, where that is not so already: mount, activate. Raises PoolVanished, ProgramMissing."""
        ...

    async def unmake(self) -> None:
        """Let go of it; volumes are not touched."""
        ...

    async def state(self) -> PoolState:
        """Never raises, and never takes longer than some seconds."""
        ...

    def place(self, volume: VolumeId) -> Place:
        """Where a volume is, or would be."""
        ...

    def draft(self, volume: VolumeId) -> Place:
        """Where it is until it is published."""
        ...

    async def allocate(self, volume: VolumeId, size: int, length: int = 0) -> Place:
        """An empty draft for a volume of `size` bytes that the guest sees; replaces an earlier one.

        `length` bytes are put into it at least, tables and all, where that is known.

        Raises NoSpace where it could not even be begun.
        """
        ...

    async def left(self, volume: VolumeId) -> Place | None:
        """The draft that an interrupted run left, if it can be gone on with; None: allocate one."""
        ...

    async def copy(self, source: Place, volume: VolumeId) -> bool:
        """Make the draft a copy of all bytes at `source`, which nobody writes to.

        False: this pool has no better way for that source than to read and write it.
        """
        ...

    async def grow(self, volume: VolumeId, size: int) -> None:
        """Make room in a volume for a disk that will have `size` bytes. Raises NoSpace."""
        ...

    async def grant(self, volume: VolumeId, identity: Identity | None) -> None:
        """Before a start: `identity` may use the volume, also after the host was restarted."""
        ...

    async def publish(self, volume: VolumeId, identity: Identity | None) -> None:
        """The draft becomes the volume, durably, and replaces what had its name; `identity` may use it."""
        ...

    async def discard(self, volume: VolumeId) -> None:
        """Remove the draft; nothing happens where there is none."""
        ...

    async def remove(self, volume: VolumeId) -> None:
        """Remove volume and draft; nothing happens where there are none."""
        ...

    async def has(self, volume: VolumeId) -> bool: ...

    async def used(self, volume: VolumeId) -> int:
        """Bytes that it takes up; 0 where it is not there."""
        ...

    async def names(self, vm: str) -> list[str]:
        """Names of everything of a VM that is in the pool, also what no record knows."""
        ...

    async def rename(self, old: str, new: str) -> None:
        """Carry all volumes of a VM over to its new name; nothing happens where that is done.

        Raises VolumesInTheWay where both names have volumes.
        """
        ...
