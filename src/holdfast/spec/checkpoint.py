"""Words of checkpoints, as the API and the command line carry them."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name

MAX_NOTES = 4096


class CheckpointType(StrEnum):
    """What a checkpoint holds beside disks and firmware state."""

    STANDARD = "standard"
    """Memory, where the VM had any: it goes on from there."""
    PRODUCTION = "production"
    """No memory; the guest had its file systems at rest. It starts from there."""


class CheckpointWish(StrEnum):
    """What somebody asks for."""

    STANDARD = "standard"
    PRODUCTION = "production"
    """Where the guest's agent does not bring the file systems to rest: standard."""
    PRODUCTION_ONLY = "production-only"
    """Where the guest's agent does not bring the file systems to rest: none."""


class CheckpointCreate(Frozen):
    name: Name | None = None
    """None: one is made from the time."""
    type: CheckpointWish = CheckpointWish.STANDARD
    notes: str = Field(default="", max_length=MAX_NOTES)


class CheckpointApply(Frozen):
    checkpoint_first: bool = False
    """Make a checkpoint of what is now before it is given up."""
    start: bool | None = None
    """Whether the VM runs afterwards; None: where it runs now, or the checkpoint holds memory."""


class CheckpointChange(Frozen):
    """None leaves a setting as it is."""

    name: Name | None = None
    notes: str | None = Field(default=None, max_length=MAX_NOTES)


class CheckpointView(Frozen):
    id: str
    name: str
    parent: str | None
    """Name of the checkpoint that it was made after; None: of the first state."""
    type: CheckpointType
    created: datetime
    current: bool
    """What the VM is now came from this one."""
    notes: str = ""
    has_memory: bool
    has_firmware_state: bool
    size: int
    """Bytes of memory and firmware state in its folder; its disks are shared with others."""
    stall_seconds: float | None = None
    """For which the guest stood still; None where it did not run."""
    scheduled: bool = False
    """Made by the schedule, which may also delete it."""


class CheckpointSchedule(Frozen):
    """How often checkpoints are made by themselves, and which of those are kept."""

    every_seconds: int | None = Field(default=None, ge=60, le=366 * 86400)
    """None: none are made."""
    keep: int = Field(default=24, ge=1, le=50)
    """The oldest scheduled ones beyond this number are deleted."""
    max_age_seconds: int | None = Field(default=None, ge=60, le=10 * 366 * 86400)
    """Scheduled ones older than this are deleted; None: whatever their age."""
    type: CheckpointWish = CheckpointWish.PRODUCTION
