"""What one room prepares and `machine` connects: opened networks, disk chains, firmware, TPM.

Described apart from done: `network`, `storage` and `trust` make these values, `vm` carries them
over to `machine`, and none of those four siblings needs to know another.
"""

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from holdfast.spec.errors import Unsupported
from holdfast.spec.model import Frozen
from holdfast.spec.vm import DiskBus, IoLimits


class TapAttachment(Frozen):
    """An opened TAP interface. It is not persistent: it vanishes when the last descriptor closes."""

    kind: Literal["tap"] = "tap"
    fd: int
    """Inheritable descriptor of /dev/net/tun, already bound to `interface`."""
    vhost_fd: int | None = None
    interface: str


class SlirpAttachment(Frozen):
    """QEMU's built-in user-mode network."""

    kind: Literal["slirp"] = "slirp"
    host_name: str
    forwards: tuple[tuple[int, int], ...] = ()
    """(host port on 127.0.0.1, guest port), TCP."""


class UnpluggedAttachment(Frozen):
    """A hub of QEMU's own with nothing else in it: the card works, and nobody is there."""

    kind: Literal["unplugged"] = "unplugged"
    hub: int = Field(ge=0)
    """Unlike that of every other card of the machine."""


NicAttachment = TapAttachment | SlirpAttachment | UnpluggedAttachment


class NotALocalFile(Unsupported):
    id = "not-a-local-file"


class FilePlace(Frozen):
    """A file of a file system that this host has mounted."""

    kind: Literal["file"] = "file"
    path: Path
    direct: bool = False
    """Past the host's page cache, so that what could not be written is known, and can be written again."""

    def protocol(self) -> dict[str, Any]:
        return {"driver": "file", "filename": str(self.path)}

    def __str__(self) -> str:
        return str(self.path)


class BlockPlace(Frozen):
    """A block device of this host, such as a logical volume."""

    kind: Literal["block"] = "block"
    path: Path

    def protocol(self) -> dict[str, Any]:
        return {"driver": "host_device", "filename": str(self.path)}

    def __str__(self) -> str:
        return str(self.path)


class RbdPlace(Frozen):
    """An image of a Ceph cluster, reached by QEMU's own client."""

    kind: Literal["rbd"] = "rbd"
    pool: str
    image: str
    user: str
    """Ceph's client name without `client.`."""
    conf: Path
    """The cluster's ceph.conf, which names its monitors."""
    keyring: Path
    """File with the client's key; only the daemon reads it."""

    @property
    def secret(self) -> str:
        """Id of QEMU's secret object that holds the key."""
        named = f"{self.conf}\0{self.keyring}\0{self.user}"
        return f"rbd-{hashlib.sha256(named.encode()).hexdigest()[:12]}"

    def protocol(self) -> dict[str, Any]:
        names = {"pool": self.pool, "image": self.image, "user": self.user}
        return {"driver": "rbd", **names, "conf": str(self.conf), "key-secret": self.secret}

    def __str__(self) -> str:
        return f"rbd:{self.pool}/{self.image}"


class WindowPlace(Frozen):
    """What lies in a file of this host from an offset on; it is read only."""

    kind: Literal["window"] = "window"
    path: Path
    offset: int = Field(ge=0)
    """Bytes of the file before it."""

    def protocol(self) -> dict[str, Any]:
        file = {"driver": "file", "filename": str(self.path), "read-only": True}
        return {"driver": "raw", "offset": self.offset, "file": file}

    def __str__(self) -> str:
        return f"{self.path} from byte {self.offset} on"


Place = Annotated[FilePlace | BlockPlace | RbdPlace | WindowPlace, Field(discriminator="kind")]
"""Where the bytes of one layer are.

`protocol()` is what QEMU's block layer takes (QAPI BlockdevOptions of qapi/block-core.json);
as text it is the name that people read.
"""


class Layer(Frozen):
    """One link of an image chain."""

    place: Place
    format: Literal["qcow2", "raw"]
    name: str = ""
    """Unique in its VM; QEMU's nodes are named by it. Empty: they are named by its place in the chain."""

    @property
    def path(self) -> Path:
        """Its path on this host. Raises NotALocalFile where it has none of its own."""
        if isinstance(self.place, RbdPlace | WindowPlace):
            settle = "Let its VM stand on its own first (`holdfast replica settle`)."
            move = "Move the disk to a pool of another kind first."
            raise NotALocalFile(
                f"{self.place} is not a file of this host",
                value=str(self.place),
                cure=settle if isinstance(self.place, WindowPlace) else move,
            )
        return self.place.path

    @classmethod
    def of_file(cls, path: Path, format: Literal["qcow2", "raw"], name: str = "") -> "Layer":
        return cls(place=FilePlace(path=path), format=format, name=name)


class OnDiskError(StrEnum):
    """What becomes of a request that the host's storage refuses."""

    REPORT = "report"
    """The guest sees the error; want of space stops it all the same."""
    STOP = "stop"
    """The guest stops, and the request is tried again when it goes on (not on NVMe, which reports)."""


class DiskAttachment(Frozen):
    """A disk as a chain of layers, top first; only the first is written to.

    The chain is given to QEMU whole: no backing file named in a header is ever followed.
    """

    id: str
    bus: DiskBus
    layers: tuple[Layer, ...]
    discard: bool = True
    limits: IoLimits = IoLimits()
    on_error: OnDiskError = OnDiskError.REPORT
    queues: int | None = None
    """Request queues of a virtio disk; None: one for each CPU that the machine has when it gets the disk."""
    sector: int = 512
    """Bytes of a sector as the guest sees it: what is on a device may be laid out by its own."""


class CdAttachment(Frozen):
    id: str
    path: Path | None
    """An ISO file, or None for an empty drive."""


class FirmwareAttachment(Frozen):
    """An OVMF build and the VM's own variable store."""

    code: Path
    variables: Path
    smm: bool
    """The build needs System Management Mode (Secure Boot builds do)."""


class TpmAttachment(Frozen):
    """The control socket of a running swtpm."""

    socket: Path
