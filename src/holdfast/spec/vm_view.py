"""A VM as it is shown: its record, what is true of it now, and what its guest says of itself."""

from datetime import datetime
from typing import Any

from holdfast.spec.model import Frozen
from holdfast.spec.vm import Acceleration, VmSpec, VmState


class GuestView(Frozen):
    """What was read from inside the guest through its agent; None is 'not known'."""

    agent: str = "unknown"
    """`connected`, `waiting` (VM runs, agent has not answered), `absent` (not in the spec), `off`."""
    secure_boot: bool | None = None
    tpm_version: str | None = None
    os_name: str | None = None
    kernel: str | None = None
    host_name: str | None = None
    cpus: int | None = None
    """How many processors it uses."""
    memory: int | None = None
    """Bytes of memory that it uses, in whole blocks of its own size."""


class FailureView(Frozen):
    """Why a VM is in the state `failed`."""

    text: str
    time: datetime
    log_tail: tuple[str, ...] = ()


class VmSummary(Frozen):
    """One line of a list."""

    id: str
    name: str
    state: VmState
    cpus: int
    memory: int
    acceleration: Acceleration | None
    addresses: tuple[str, ...]
    created: datetime
    operation: str | None = None
    """Id of the operation under way."""


class VmView(VmSummary):
    """Everything about one VM."""

    spec: VmSpec
    guest: GuestView
    boot_seconds: float | None = None
    """From the request to start until the agent's first answer."""
    uptime_seconds: float | None = None
    folder: str
    failure: FailureView | None = None
    notices: tuple[str, ...] = ()
    """What a user should know: emulation instead of KVM, user-mode network, ..."""
    running: VmSpec | None = None
    """What the machine that runs now is made of; None: none runs. `spec` is what the next start makes."""
    pending: dict[str, Any] = {}
    """Changed settings that take effect at the next start."""
    waits: dict[str, str] = {}
    """Why, for those of them that could have taken effect at once."""
