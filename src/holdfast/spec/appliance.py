"""An appliance: a VM as another platform describes it, and what an import would make of it.

Every source (OVF, Hyper-V, libvirt, Proxmox, plain disks) is read into one `Appliance`; a pure
function makes an `ImportPlan` of it and of what is known of this host.
"""

from enum import StrEnum
from typing import Any

from pydantic import Field, SecretStr

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name
from holdfast.spec.vm import DiskBus, GuestOs

MAX_FILES = 256


class Severity(StrEnum):
    INFO = "info"
    """It maps, and this is how."""
    WARNING = "warning"
    """It changes or is lost."""
    ERROR = "error"
    """It stands in the way of an import."""


class Finding(Frozen):
    id: str
    """Kebab-case; says what was found, and never changes its meaning."""
    severity: Severity
    text: str


class SourceKind(StrEnum):
    OVF = "ovf"
    HYPER_V = "hyper-v"
    LIBVIRT = "libvirt"
    PROXMOX = "proxmox"
    DISK = "disk"
    VSPHERE = "vsphere"


class FirmwareKind(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


class Product(Frozen):
    """OVF's ProductSection (DMTF DSP0243, 9.5)."""

    name: str = ""
    vendor: str = ""
    version: str = ""


class ApplianceDisk(Frozen):
    id: str
    """As the source calls it."""
    file: str | None
    """Name of a file of the source; None: an empty disk."""
    capacity: int | None = None
    """Bytes that the source says; None: it says nothing. The file itself is believed, not this."""
    file_size: int | None = None
    """Bytes of the file that the source says."""
    populated: int | None = None
    """Bytes of data in it, where the source says so."""
    bus: str = ""
    """`scsi`, `sata`, `ide`, `nvme`, `virtio`; empty where the source says nothing."""
    gzip: bool = False
    """The file is compressed as a whole (RFC 1952)."""


class ApplianceNic(Frozen):
    id: str
    network: str | None
    """Name of the network that it was on."""
    mac: str | None = None
    """Six bytes in hex with colons, lower case; None: the source leaves it open."""
    model: str = ""
    """As the source calls it: `VmxNet3`, `E1000`, `virtio`."""
    vlan: int | None = None


class Appliance(Frozen):
    """One machine of a source. What the source does not say is None or empty."""

    kind: SourceKind
    dialect: str = ""
    """Who wrote it: `vsphere`, `virtualbox`, `workstation`, `ovftool`, `xen`, ..."""
    name: str = ""
    id: str | None = None
    """UUID of the machine."""
    description: str = ""
    os: GuestOs | None = None
    os_name: str = ""
    cpus: int | None = None
    memory: int | None = None
    """Bytes."""
    firmware: FirmwareKind | None = None
    secure_boot: bool | None = None
    tpm: bool | None = None
    nvram: str | None = None
    """Name of the file with the firmware's variables."""
    firmware_state: str | None = None
    """Name of the file with the firmware state that Holdfast exported along."""
    disks: tuple[ApplianceDisk, ...] = ()
    """In the order in which the firmware tries them."""
    nics: tuple[ApplianceNic, ...] = ()
    eulas: tuple[str, ...] = ()
    product: Product | None = None
    files: tuple[str, ...] = ()
    """Every file that the description names."""
    findings: tuple[Finding, ...] = ()
    """What was noticed while reading it."""


class PlannedDisk(Frozen):
    id: str
    """Of the VM: `disk0`, `disk1`, ..."""
    source: str
    """As the source calls it."""
    file: str | None
    format: str
    """Of the file: `vmdk`, `qcow2`, `vhdx`, `vpc`, `raw`; `blank` where there is none."""
    size: int
    """Bytes the guest will see."""
    file_size: int
    """Bytes to be read."""
    data: int | None = None
    """Bytes that its volume takes for data, counted by the file's own tables; None: not known."""
    bus: DiskBus
    gzip: bool = False
    pool: str | None = None
    """None: the VM's own folder."""


class PlannedNic(Frozen):
    id: str
    network: str | None
    """Of the source."""
    switch: str | None
    """None: the user-mode network."""
    mac: str | None
    """None: a free one is chosen."""
    mac_kept: bool
    vlan: int | None = None


class Signature(Frozen):
    """Who signed the manifest (DMTF DSP0243, 6.4)."""

    subject: str
    issuer: str
    not_after: str
    """ISO 8601."""
    fits: bool
    """The signature is one of this manifest by this certificate."""
    in_date: bool
    """The certificate's own dates hold."""
    text: str
    """Why it does not fit; empty where it does."""
    known: bool = False
    """A path leads from the certificate to an authority that this host trusts."""
    fingerprint: str = ""
    """SHA-256 of the certificate, in hex."""


class PoolRoom(Frozen):
    """What an import takes of one pool."""

    pool: str
    """`local` is where VMs' own folders lie."""
    needed: int
    """Bytes, estimated."""
    free: int | None
    """Bytes; None: it does not tell."""


class PlannedState(Frozen):
    """The firmware state of a VM that Holdfast exported, encrypted."""

    file: str
    taken: bool
    """The VM gets it, whole, in place of a new one."""
    slot: dict[str, Any] = {}
    """Key slot of its container, not secret: the recipient's private key makes a content key of it."""
    bound: str = ""
    """Hex; ties the slot to its container."""


class ImportPlan(Frozen):
    """What maps, what changes, what is lost, and what it takes."""

    importable: bool
    """No finding is an error."""
    name: str
    kind: SourceKind
    dialect: str = ""
    product: Product | None = None
    cpus: int
    memory: int
    """Bytes."""
    os: GuestOs
    firmware: FirmwareKind | None
    """Of the source; VMs here have UEFI."""
    secure_boot: bool
    tpm: bool
    disks: tuple[PlannedDisk, ...]
    nics: tuple[PlannedNic, ...]
    eulas: tuple[str, ...] = ()
    manifest: str | None = None
    """Algorithm of the checksums that will be verified; None: there are none."""
    signature: Signature | None = None
    firmware_state: PlannedState | None = None
    """None: the source brings none along."""
    findings: tuple[Finding, ...] = ()
    space_needed: int
    """Bytes in all, estimated."""
    space_free: int
    """Bytes where VMs lie."""
    space: tuple[PoolRoom, ...] = ()
    """By pool."""
    seconds: int
    """Estimated."""


class ImportFile(Frozen):
    """One file of a source that was handed to the daemon."""

    name: str = Field(min_length=1, max_length=512)
    """Its path within the source's folder, parts by `/`."""
    upload: str = Field(max_length=64)
    """Id of an upload, or of a file that was handed over."""


class ImportChoices(Frozen):
    """What is to be different from what a source says."""

    name: Name | None = None
    """None: the source's."""
    switches: dict[str, str] = Field(default={}, max_length=64)
    """Name of a network of the source to that of a switch; the key `*` is for all others."""
    pools: dict[str, str] = Field(default={}, max_length=64)
    """A disk, by its id in the plan or in the source, to the pool for its volume; `*` is for all others."""
    secure_boot: bool | None = None
    """None: as the source."""
    tpm: bool | None = None
    """None: as the source."""
    accept_eulas: bool = False
    start: bool = False


class VmImport(ImportChoices):
    """A source, and what is to be different from what it says."""

    files: tuple[ImportFile, ...] = Field(min_length=1, max_length=MAX_FILES)
    machine: str | None = Field(default=None, max_length=255)
    """Which one, where the source has several; its name or id."""
    passphrase: SecretStr | None = None
    """Opens the firmware state that comes along; without this and the next it is not taken."""
    content_key: SecretStr | None = None
    """64 hexadecimal digits: what the recipient's private key, which stays with its owner, opened."""
    same_tpm: bool = False
    """Take over the TPM identity of a VM that this host has too."""


class ImportFetch(Frozen):
    """A source to be downloaded, as one file."""

    url: str = Field(max_length=2048)
    checksum: str | None = Field(default=None, max_length=256)
    """`sha256:` or `sha512:` and hex digits."""


class HandedFile(Frozen):
    """A file that was handed over as an open descriptor."""

    id: str
    size: int
    """Bytes."""
