"""Requests about VMs, as the API and the CLI carry them."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.units import GIB, MIB, Size
from holdfast.spec.vm import MAX_CPUS, MIN_MEMORY, CloudInit, DiskBus, GuestOs


def _short(text: str | None) -> str | None:
    if text is not None and len(text.encode()) > 64 * 1024:
        raise ValueError("cloud-init text is limited to 64 KiB")
    return text


class NewDisk(Frozen):
    """A disk to be made: from an image (name or digest), or empty."""

    size: Size | None = Field(default=None, ge=MIB, le=64 * 1024 * GIB)
    """Bytes; None means the image's own size. Never smaller than the image."""
    image: str | None = None
    bus: DiskBus = DiskBus.VIRTIO
    full_copy: bool = False
    """Copy the image whole instead of a thin overlay."""

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if self.size is None and self.image is None:
            raise ValueError("a disk needs a size, an image, or both")
        return self


class NewNic(Frozen):
    switch: str | None = None
    """Name of the switch; None means the user-mode switch."""
    vlan: int | None = Field(default=None, ge=1, le=4094)
    mac: str | None = None


class KernelSource(Frozen):
    """Direct kernel start: images of kind kernel and initrd, by name or digest."""

    kernel: str
    initrd: str | None = None
    append: str = Field(default="", max_length=2048)


class VmCreate(Frozen):
    name: Name
    cpus: int = Field(default=1, ge=1, le=MAX_CPUS)
    memory: Size = Field(default=GIB, ge=MIN_MEMORY, le=240 * 1024 * GIB)
    os: GuestOs = GuestOs.LINUX
    secure_boot: bool = True
    tpm: bool = True
    guest_agent: bool = True
    disks: tuple[NewDisk, ...] = Field(default=(), max_length=64)
    iso: str | None = None
    """Image of kind iso in the first CD drive; the VM starts from it."""
    kernel: KernelSource | None = None
    nics: tuple[NewNic, ...] = Field(default=(NewNic(),), max_length=64)
    cloud_init: CloudInit | None = None
    start: bool = False


class VmChange(Frozen):
    """New settings; None leaves a setting as it is. CPUs and memory take effect at the next start."""

    cpus: int | None = Field(default=None, ge=1, le=MAX_CPUS)
    memory: Size | None = Field(default=None, ge=MIN_MEMORY, le=240 * 1024 * GIB)
    secure_boot: bool | None = None
    guest_agent: bool | None = None
    iso: str | None = None
    """Image to put into the first CD drive; the empty string empties it."""


class VmClone(Frozen):
    name: Name
    full_copy: bool = False


class ExecRequest(Frozen):
    argv: tuple[Annotated[str, AfterValidator(_short)], ...] = Field(min_length=1, max_length=256)
    stdin: str | None = Field(default=None, max_length=1024 * 1024)
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)


class ExecResult(Frozen):
    exit_code: int | None
    """None where the program was ended by a signal."""
    signal: int | None = None
    stdout: str
    stderr: str
    truncated: bool = False
