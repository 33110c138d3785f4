"""What a VM is: its state and its specification.

States (design: ONE stored enum; everything else is derived):

    off ──start──▶ starting ──▶ running ──stop──▶ stopping ──▶ off
                                   │  ▲
                             pause ▼  │ resume
                                  paused
    running/paused ──save──▶ saving ──▶ saved ──start──▶ starting ──▶ running
    A start or save that fails leaves the state before it; `failed` = QEMU ended by itself.
    (`migrating` is reserved for live migration.)
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.units import GIB, MIB, TIB, Size

MAX_CPUS = 2048
MAX_NICS = 64
MAX_USB = 7
USB_NAME = r"^([0-9a-fA-F]{4}:[0-9a-fA-F]{4}|[0-9]{1,3}(\.[0-9]{1,3}){1,7})$"
"""Of a device of the host: VENDOR:PRODUCT in hex, or BUS.PORT."""
MIN_MEMORY = 16 * MIB
MAX_RATE = 10**9
"""Of requests a second; QEMU takes up to 10^15 (include/qemu/throttle.h, THROTTLE_VALUE_MAX)."""
Rate = Annotated[Size, Field(ge=1, le=TIB)]
"""Bytes a second."""


class VmState(StrEnum):
    OFF = "off"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SAVING = "saving"
    SAVED = "saved"
    STOPPING = "stopping"
    MIGRATING = "migrating"
    FAILED = "failed"


class GuestOs(StrEnum):
    """What the hardware is tuned for: clock, Hyper-V enlightenments, driver disc."""

    LINUX = "linux"
    WINDOWS = "windows"


class DiskBus(StrEnum):
    VIRTIO = "virtio"
    SCSI = "scsi"
    NVME = "nvme"


class Acceleration(StrEnum):
    KVM = "kvm"
    TCG = "tcg"


class UefiBoot(Frozen):
    """Generation 2: UEFI from a private variable store; the default."""

    kind: Literal["uefi"] = "uefi"
    secure_boot: bool = True
    tpm: bool = True
    tpm_identity: str | None = None
    """Id of the VM whose TPM identity this one took over; None: its own."""


class KernelBoot(Frozen):
    """A Linux kernel started directly by QEMU, with no firmware, Secure Boot or vTPM.

    For appliances and tests that must start in seconds. `kernel` and `initrd` are image digests.
    """

    kind: Literal["kernel"] = "kernel"
    kernel: str
    initrd: str | None = None
    append: str = ""


Boot = Annotated[UefiBoot | KernelBoot, Field(discriminator="kind")]


class VolumeFormat(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"


class IoLimits(Frozen):
    """How much a disk may do in a second; None: as much as it can.

    A limit of all requests and one of reads or writes alone exclude each other (QEMU, docs/throttle.txt).
    """

    iops: int | None = Field(default=None, ge=1, le=MAX_RATE)
    """Requests a second, reads and writes together."""
    iops_read: int | None = Field(default=None, ge=1, le=MAX_RATE)
    iops_write: int | None = Field(default=None, ge=1, le=MAX_RATE)
    bandwidth: Rate | None = None
    """Bytes a second, reads and writes together."""
    bandwidth_read: Rate | None = None
    bandwidth_write: Rate | None = None
    burst_iops: int | None = Field(default=None, ge=1, le=MAX_RATE)
    """Requests a second that are let through for `burst_seconds` at a time; at least every limit on them."""
    burst_bandwidth: Rate | None = None
    """Bytes a second, as `burst_iops`."""
    burst_seconds: int = Field(default=1, ge=1, le=3600)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for what in ("iops", "bandwidth"):
            whole, *parts = (getattr(self, f"{what}{part}") for part in ("", "_read", "_write"))
            burst = getattr(self, f"burst_{what}")
            if whole is not None and any(part is not None for part in parts):
                raise ValueError(f"{what} limits reads and writes together; leave out {what}_read and _write")
            rates = [rate for rate in (whole, *parts) if rate is not None]
            if burst is not None and not rates:
                raise ValueError(f"burst_{what} needs a limit that it may pass: {what}")
            if burst is not None and burst < max(rates):
                raise ValueError(f"burst_{what} is {burst}, less than the limit of {max(rates)}")
        return self


class ReplicaOrigin(Frozen):
    """A disk of a point of a replica that this host holds, opened to be read."""

    replica: Name
    """The replica's name on this host."""
    token: str = Field(pattern=r"^[0-9a-f-]{1,64}$")
    """Names the opened point in the replica."""
    disk: Name
    """The disk's name in the point."""


class Disk(Frozen):
    """One disk: a chain of volumes, of which the guest writes to the first only.

    volume ──▶ below[0] ──▶ below[1] ──▶ ... ──▶ image, or origin
    """

    id: str
    """Stable within the VM: `disk0`, `disk1`, ... Also the guest-visible serial number."""
    volume: str
    """Name of the volume on top: `disk0` at first, `disk0-1`, `disk0-2`, ... after checkpoints."""
    below: tuple[str, ...] = ()
    """Names of the VM's own volumes under it, from the top down; they are never written to again."""
    pool: str | None = None
    """Name of the pool of all these volumes; None: the VM's own folder."""
    format: VolumeFormat = VolumeFormat.QCOW2
    """Of the lowest of the VM's own volumes; those above it are qcow2."""
    size: int
    """Bytes the guest sees."""
    bus: DiskBus = DiskBus.VIRTIO
    image: str | None = None
    """Digest of the image that the volume is a thin overlay of; None where it stands alone."""
    origin: ReplicaOrigin | None = None
    """What it is a thin overlay of instead of an image."""
    device: str | None = None
    """Stable path of the host's block device that carries the disk, raw; it has no volumes then."""
    limits: IoLimits = IoLimits()


class CdDrive(Frozen):
    id: str
    image: str | None = None
    """Digest of the ISO image in the drive; None where the drive is empty."""


class Nic(Frozen):
    id: str
    """Stable within the VM: `nic0`, `nic1`, ..."""
    mac: str
    """Lower case, colons; locally administered (IEEE 802)."""
    switch: str | None = None
    """Name of the switch; None means the user-mode switch."""
    vlan: int | None = Field(default=None, ge=1, le=4094)
    """IEEE 802.1Q VLAN id of the port; None means untagged."""
    unplugged: bool = False
    """In no network at all; then there is no switch."""
    cut: bool = False
    """Of a machine under way only: its port is gone, and its guest has yet to let go of the card."""


class UsbDevice(Frozen):
    """A USB device of the host that the VM has to itself."""

    id: str
    """Stable within the VM: `usb0`, `usb1`, ..., which its port follows from."""
    host: str = Field(pattern=USB_NAME)
    """Lower case; looked up anew at each start."""


class CloudInit(Frozen):
    """What the NoCloud seed holds. Text given whole (`user_data`) wins over the parts."""

    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    user_data: str | None = None


class Dimm(Frozen):
    """A piece of memory that was added to a machine while it ran."""

    slot: int = Field(ge=0)
    size: int = Field(ge=MIB)
    """Bytes."""
    address: int = Field(ge=0)
    """Of its first byte, in the guest."""


class Layout(Frozen):
    """What a machine under way was started with room for; the same again for the memory saved of it."""

    nic_ports: int = Field(ge=0)
    """PCIe ports for NICs, used and free."""
    disk_ports: int = Field(ge=0)
    """PCIe ports for disks, used and free."""
    max_cpus: int = Field(ge=1, le=MAX_CPUS)
    """CPUs that it can come to have."""
    queues: int | None = None
    """Request queues of each virtio disk and SCSI controller; None: one a CPU, as QEMU decides by itself."""
    dimms: tuple[Dimm, ...] = ()
    """What of its memory was added since it started."""


class VmSpec(Frozen):
    """Everything that decides how the VM is built. Persisted as JSON with `version`."""

    version: Literal[1] = 1
    cpus: int = Field(ge=1, le=MAX_CPUS)
    memory: Size = Field(ge=MIN_MEMORY, le=240 * 1024 * GIB)
    """Bytes of guest memory."""
    os: GuestOs = GuestOs.LINUX
    boot: Boot = UefiBoot()
    disks: tuple[Disk, ...] = ()
    cd_drives: tuple[CdDrive, ...] = ()
    nics: tuple[Nic, ...] = Field(default=(), max_length=MAX_NICS)
    usb: tuple[UsbDevice, ...] = Field(default=(), max_length=MAX_USB)
    cloud_init: CloudInit | None = None
    guest_agent: bool = True
    require_attested_host: bool = False
    """The vTPM's key is released by the host's verifier, to a host that it trusts only."""
    template: bool = False
    """To be cloned only, never started."""
    layout: Layout | None = None
    """Of a machine under way only; None there: one started before layouts were kept."""


class VmName(Frozen):
    """A name alone, for requests that carry one."""

    name: Name
