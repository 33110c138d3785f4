"""Whose turn it is to run a VM that is replicated, and what is asked for when that changes."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from holdfast.spec.model import Frozen
from holdfast.spec.names import Name


class Turn(StrEnum):
    """What one host may do with a VM; each host keeps its own.

    primary ──▶ handing-over ──▶ fenced ──▶ adopting ──▶ replica ──▶ taking-over ──▶ primary
       └───── told by the other host ──▲                                └─▶ failed-over ──▶ primary
    """

    PRIMARY = "primary"
    """It runs here."""
    HANDING_OVER = "handing-over"
    """A planned failover is under way; it must not start here."""
    FENCED = "fenced"
    """It failed over to another host; it must not start here."""
    ADOPTING = "adopting"
    """As fenced; its disks are the base of a replica that is not whole yet."""
    REPLICA = "replica"
    """It is received here."""
    TAKING_OVER = "taking-over"
    """It is received no more, and is being made here."""
    FAILED_OVER = "failed-over"
    """It runs here, and that can be taken back."""


RUNS = frozenset({Turn.PRIMARY, Turn.TAKING_OVER, Turn.FAILED_OVER})
"""With one of these a host may start the VM."""


class TurnView(Frozen):
    """Whose turn it is, as this host knows it."""

    vm: str
    """Id of the VM."""
    name: str
    turn: Turn
    term: int
    """Rises with each failover; of two hosts that both claim a VM the one with the higher term is right."""
    peer: str
    """The other host; empty: it is paired no more."""
    since: datetime
    error: str
    """Why the last failover to this host failed; empty: it did not."""


class Failover(Frozen):
    """To a point of a replica that this host holds."""

    point: int | None = Field(default=None, ge=1)
    """Number of the point; None: the newest, or that of `time`."""
    time: datetime | None = None
    """The newest point that is not younger than this."""
    commit: bool = False
    """It is final; the other points are dropped."""


class PlannedFailover(Frozen):
    """Of a VM of this host to the host that holds its replica."""

    peer: Name | None = None
    """That host; None: the only one."""
    timeout_seconds: float = Field(default=90.0, gt=0, le=3600)
    """That the guest has to shut down."""
