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
from typing import Annotated, Literal

from pydantic import Field

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.units import GIB, MIB, Size

MAX_CPUS = 2048
MAX_NICS = 64
MIN_MEMORY = 16 * MIB


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


class Disk(Frozen):
    """One disk: a chain of volumes, of which the guest writes to the first only.

    volume ──▶ below[0] ──▶ below[1] ──▶ ... ──▶ image
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


class CloudInit(Frozen):
    """What the NoCloud seed holds. Text given whole (`user_data`) wins over the parts."""

    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    user_data: str | None = None


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
    cloud_init: CloudInit | None = None
    guest_agent: bool = True
    require_attested_host: bool = False
    """The vTPM's key is released by the host's verifier, to a host that it trusts only."""
    template: bool = False
    """To be cloned only, never started."""


class VmName(Frozen):
    """A name alone, for requests that carry one."""

    name: Name
