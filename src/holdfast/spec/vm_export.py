"""What is asked of `vm export`."""

from enum import StrEnum

from pydantic import Field

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name


class DiskFormat(StrEnum):
    """Of the disks of an export."""

    VMDK = "vmdk"
    """streamOptimized: compressed, and read by every platform that takes OVF."""
    QCOW2 = "qcow2"
    VHDX = "vhdx"
    RAW = "raw"


class StateFile(Frozen):
    """The container of firmware state that goes along; its content is the caller's alone."""

    size: int = Field(ge=1, le=64 * 1024 * 1024)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class VmExport(Frozen):
    format: DiskFormat = DiskFormat.VMDK
    checkpoint: Name | None = None
    """What the VM was at a checkpoint; None: as it is, which must be off."""
    firmware_state: StateFile | None = None
