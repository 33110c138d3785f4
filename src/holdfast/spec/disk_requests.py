"""Disks of a VM that exists: what is asked for, and how each is shown."""

from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from holdfast.spec.errors import InvalidInput
from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.units import GIB, MIB, TIB, Size
from holdfast.spec.vm import MAX_RATE, Disk, DiskBus, IoLimits

LARGEST_DISK = 64 * 1024 * GIB


class BadLimits(InvalidInput):
    id = "bad-limits"


class DiskAdd(Frozen):
    """One more disk: empty, from an image, or a block device of the host."""

    size: Size | None = Field(default=None, ge=MIB, le=LARGEST_DISK)
    """Bytes; None means the image's or the device's own size."""
    image: str | None = None
    """Name or digest of an image, of which it becomes a thin overlay."""
    full_copy: bool = False
    """Copy the image whole instead."""
    device: str | None = Field(default=None, max_length=4096)
    """Path of a block device of the host that carries the disk directly."""
    pool: Name | None = None
    """Where its volume lies; None: in the VM's own folder."""
    bus: DiskBus = DiskBus.VIRTIO
    limits: IoLimits = IoLimits()

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = self.image or self.size is not None or self.full_copy or self.pool
        if self.device is not None and given:
            raise ValueError("a host's device has its own size and place; leave out size, image and pool")
        if self.device is None and self.size is None and self.image is None:
            raise ValueError("a disk needs a size, an image, or a device")
        return self


class DiskGrow(Frozen):
    size: Size = Field(ge=MIB, le=LARGEST_DISK)
    """Bytes that it has afterwards."""


class DiskMove(Frozen):
    to: Name
    """Name of the pool that holds it afterwards."""


class DiskBusChange(Frozen):
    bus: DiskBus
    """What the guest sees it on from the next start on."""


class IoLimitsChange(Frozen):
    """New limits (see `IoLimits`); None leaves one as it is, 0 lifts it."""

    iops: int | None = Field(default=None, ge=0, le=MAX_RATE)
    iops_read: int | None = Field(default=None, ge=0, le=MAX_RATE)
    iops_write: int | None = Field(default=None, ge=0, le=MAX_RATE)
    bandwidth: Size | None = Field(default=None, ge=0, le=TIB)
    bandwidth_read: Size | None = Field(default=None, ge=0, le=TIB)
    bandwidth_write: Size | None = Field(default=None, ge=0, le=TIB)
    burst_iops: int | None = Field(default=None, ge=0, le=MAX_RATE)
    burst_bandwidth: Size | None = Field(default=None, ge=0, le=TIB)
    burst_seconds: int | None = Field(default=None, ge=1, le=3600)

    def applied(self, limits: IoLimits) -> IoLimits:
        """Raises BadLimits: what comes of it contradicts itself."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        wanted = {**limits.model_dump(), **{name: value or None for name, value in given.items()}}
        try:
            return IoLimits.model_validate(wanted)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise BadLimits(
                f"these limits do not fit together: {reason}",
                value=given,
                cure="Lift a limit with 0; see `holdfast disk limit --help`.",
            ) from error


class DiskView(Frozen):
    """A disk as the machine that runs has it, else as the next start makes it."""

    id: str
    bus: DiskBus
    size: int
    """Bytes the guest sees."""
    stored: int
    """Bytes on the host that are this disk's alone."""
    pool: str | None
    image: str | None
    device: str | None
    layers: tuple[str, ...]
    """Names of its own volumes, top first; more than one after checkpoints."""
    limits: IoLimits
    plugged: bool
    """In the machine that runs now."""
    after_next_start: bool
    """In the machine that the next start makes."""
    pending: dict[str, Any] = {}
    """What the next start changes of it."""
    notices: tuple[str, ...] = ()
    """What a user should know of it."""


def own_layers(disk: Disk) -> tuple[str, ...]:
    """Names of a disk's own volumes, top first; none of a host's device."""
    return () if disk.device is not None else (disk.volume, *disk.below)
