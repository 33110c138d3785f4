"""Requests about VMs, as the API and the CLI carry them."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.units import GIB, MIB, Size
from holdfast.spec.vm import MAX_CPUS, MIN_MEMORY, CloudInit, DiskBus, GuestOs

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


def _short(text: str) -> str:
    if len(text.encode()) > 64 * 1024:
        raise ValueError("an argument is limited to 64 KiB")
    return text


def station(text: str) -> str:
    """A MAC address of a single station (IEEE 802: the lowest bit of the first byte is 0)."""
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise ValueError(f"{text!r} is not a MAC address; write it like 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError(f"{text!r} is a group's MAC address or none at all; a NIC needs one of its own")
    return mac


class NewDisk(Frozen):
    """A disk to be made: from an image (name or digest), or empty."""

    size: Size | None = Field(default=None, ge=MIB, le=64 * 1024 * GIB)
    """Bytes; None means the image's own size. Never smaller than the image."""
    image: str | None = None
    bus: DiskBus = DiskBus.VIRTIO
    full_copy: bool = False
    """Copy the image whole instead of a thin overlay."""
    pool: str | None = Field(default=None, max_length=63)
    """Name of the pool it is made in; None: the VM's own folder."""

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if self.size is None and self.image is None:
            raise ValueError("a disk needs a size, an image, or both")
        return self


class NewNic(Frozen):
    switch: str | None = None
    """Name of the switch; None means the user-mode switch."""
    vlan: int | None = Field(default=None, ge=1, le=4094)
    mac: Annotated[str, Field(max_length=17), AfterValidator(station)] | None = None
    """Six bytes in hex, by colons or dashes; kept in lower case with colons."""


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
    require_attested_host: bool | None = None
    """Start only on a host that its verifier trusts; a VM that is off and has a vTPM."""
    iso: str | None = None
    """Image to put into the first CD drive; the empty string empties it."""
    template: bool | None = None
    """A template is cloned and never started; only a VM that is off becomes one."""


class VmClone(Frozen):
    name: Name
    full_copy: bool = False
    same_tpm: bool = False
    """Keep the TPM's identity and what is sealed in it: for a move, after which the source is deleted."""


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
