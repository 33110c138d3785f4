"""Hosts that replicate to each other: who may send here, and where this host sends."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name


class PeerRole(StrEnum):
    SOURCE = "source"
    """It sends replicas to this host."""
    RECEIVER = "receiver"
    """It holds replicas of this host's VMs."""


class ReplicaPeer(Frozen):
    """A host that was paired with this one. One host may be both, each under a name of its own."""

    name: Name
    role: PeerRole
    certificate: str = Field(max_length=16384)
    """PEM; nothing else is let in, or sent to, under this name."""
    fingerprint: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    host: str | None = None
    """Name or address of a receiver."""
    port: int | None = Field(default=None, ge=1, le=65535)
    paired: datetime
