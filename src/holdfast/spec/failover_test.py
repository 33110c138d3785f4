"""Tests of failovers: an isolated VM made from a replica, checked, and cleaned up again."""

from datetime import datetime
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from holdfast.spec.appliance import Finding
from holdfast.spec.model import Frozen
from holdfast.spec.replica import Consistency

LONGEST_CHECK = 4000
LONGEST_OUTPUT = 4000
LONGEST_WAIT = 3600.0
LONGEST_TEST = 30 * 86400


class FailoverTestPhase(StrEnum):
    STARTING = "starting"
    """The VM is made and started."""
    CHECKING = "checking"
    """Its guest is waited for, and the check runs."""
    RUNNING = "running"
    """It runs until it is ended."""
    ENDING = "ending"
    """It is deleted."""
    ENDED = "ended"


class FailoverVerdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"


class FailoverCheck(Frozen):
    """What shows that a VM works."""

    command: str | None = Field(default=None, max_length=LONGEST_CHECK)
    """Given to the guest's shell by its agent; exit code 0 is good. None: that the agent answers will do."""
    wait_seconds: float = Field(default=300.0, gt=0, le=LONGEST_WAIT)
    """How long the agent is waited for, and after that the command."""


class FailoverTestCreate(FailoverCheck):
    point: int | None = Field(default=None, ge=1)
    """Number of the point; None: the newest."""
    at: datetime | None = None
    """The newest point that is not younger than this, instead of a number."""
    for_seconds: int | None = Field(default=None, ge=1, le=LONGEST_TEST)
    """It is cleaned up after so long at the latest; None: when it is ended."""
    keep: bool = False
    """Do not clean up after a check with a command."""

    @model_validator(mode="after")
    def _one_point(self) -> Self:
        if self.point is not None and self.at is not None:
            raise ValueError("a point is chosen by its number or by a time, not by both")
        return self


class FailoverTest(Frozen):
    """One test, under way or ended."""

    id: str
    replica: str
    """Name of the replica on this host."""
    vm: str
    """Name of the isolated VM."""
    vm_id: str
    point: int
    taken: datetime
    """The point's instant, by the source's clock."""
    started: datetime
    scheduled: bool = False
    check: FailoverCheck = FailoverCheck()
    keep: bool = False
    until: datetime | None = None
    phase: FailoverTestPhase = FailoverTestPhase.STARTING
    verdict: FailoverVerdict | None = None
    """None: not known yet, or the guest has no agent to ask."""
    ready_seconds: float | None = None
    """From the request until the guest's agent answered; None: it has not."""
    exit_code: int | None = None
    output: str = ""
    """The end of what the command wrote; a guest's words."""
    error: str = ""
    """Why it failed; empty: it did not."""
    findings: tuple[Finding, ...] = ()
    """What of the VM is not as on its source."""
    ended: datetime | None = None


class FailoverTestPlan(Frozen):
    """Tests that are made by themselves."""

    schedule: str = Field(max_length=200)
    """`every 12h`, `daily 03:00`, `mon-fri 03:00` or `sun 03:00`; times of day are this host's."""
    check: FailoverCheck = FailoverCheck()
    since: datetime | None = None
    """When it was asked for; said by this host."""


class ReplicaPoint(Frozen):
    """A point of a replica that this host holds."""

    number: int
    taken: datetime
    """Its instant, by the source's clock."""
    received: int
    """Bytes that arrived since the point before, as far as points are kept."""
    lost: str = ""
    """Why it cannot be used."""
    open: bool = False
    """A VM stands on it."""
    consistency: Consistency = Consistency.CRASH
