"""What one room prepares and `machine` connects: opened networks, disk chains, firmware, TPM.

Described apart from done: `network`, `storage` and `trust` make these values, `vm` carries them
over to `machine`, and none of those four siblings needs to know another.
"""

from pathlib import Path
from typing import Literal

from holdfast.spec.model import Frozen
from holdfast.spec.vm import DiskBus


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


NicAttachment = TapAttachment | SlirpAttachment


class Layer(Frozen):
    """One file of an image chain."""

    path: Path
    format: Literal["qcow2", "raw"]
    name: str = ""
    """Unique in its VM; QEMU's nodes are named by it. Empty: they are named by its place in the chain."""


class DiskAttachment(Frozen):
    """A disk as a chain of files, top first; only the first is written to.

    The chain is given to QEMU whole: no backing file named in a header is ever followed.
    """

    id: str
    bus: DiskBus
    layers: tuple[Layer, ...]
    discard: bool = True


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
