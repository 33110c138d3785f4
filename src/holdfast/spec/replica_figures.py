"""What replications are told about: progress of a cycle, what happened over time, what is wrong and why."""

from datetime import datetime

from pydantic import Field

from holdfast.spec.model import Frozen


class ReplicaProgress(Frozen):
    """A cycle under way that takes longer than a moment."""

    phase: str
    """`comparing` both sides, `copying` everything, or sending `changes`."""
    done_bytes: int
    total_bytes: int
    """At least what is done; of `changes` what waited when it was counted last."""
    rate: float | None
    """Bytes a second that are done; None: not known yet."""
    seconds_left: float | None


class ReplicaInterval(Frozen):
    begin: datetime
    seconds: int
    """Its length."""
    cycles: int
    """That arrived."""
    missed: int
    """How often a cycle arrived after the RPO had grown above its target."""
    errors: int
    average_bytes: float
    """Of what changed, a cycle."""
    largest_bytes: int
    average_latency: float
    """Seconds from a cycle's instant until it was whole over there."""
    changed_bytes: int
    """Of all cycles."""
    pending_bytes: int
    """That waited, at most."""
    rpo_p50_seconds: float | None
    """None: nothing was measured."""
    rpo_p99_seconds: float | None


class ReplicaHistory(Frozen):
    vm: str
    peer: str
    total: ReplicaInterval
    """Of all the time that was asked for."""
    last_sync: datetime | None
    last_test: datetime | None
    """When the replica was last started as a test."""
    intervals: tuple[ReplicaInterval, ...]
    """Ascending; those of which nothing is known are missing."""


class ReplicaEvidence(Frozen):
    """One cycle that arrived or failed."""

    ended: datetime
    seconds: float
    changed_bytes: int
    sent_bytes: int
    """On the link."""
    error_id: str
    """Empty: it arrived."""
    error: str


class ReplicaCause(Frozen):
    """One thing that is not as it should be."""

    rule: str
    """Its id; the same in every version."""
    severity: str
    """`warning` or `critical`."""
    side: str
    """`source`, `link` or `replica`: where to look."""
    since: datetime | None
    """None: that is not known."""
    cause: str
    cure: str
    error_id: str = ""
    """Of the error that shows it; empty: a figure does."""
    error: str = ""


class ReplicaExplanation(Frozen):
    """Why a replication is as it is."""

    vm: str
    peer: str
    held: bool
    """It is a replica that this host holds for the peer."""
    state: str
    health: str
    summary: str
    """In one sentence."""
    causes: tuple[ReplicaCause, ...]
    """The worst first; none: all is well."""
    tried: str
    """What is done about it without anybody's help; empty: nothing needs doing."""
    attempts: int = Field(ge=0)
    """That failed, one after another."""
    next_try_seconds: float | None
    figures: dict[str, float | int | str | None]
    """What it was told from, by name; seconds, bytes, bytes a second."""
    evidence: tuple[ReplicaEvidence, ...]
    """The last cycles, the newest last."""


class ReplicaPlan(Frozen):
    """What a VM's replication needs of its link, by what was measured; rates in bytes a second."""

    vm: str
    """Empty: all that were asked for together, as if they shared one link."""
    peer: str
    measured_seconds: float
    churn: float
    """Average."""
    churn_peak: float
    """Of the minute with most; of more than a day, of the hour."""
    wire_ratio: float
    """Bytes on the link for each that changed: what compression leaves."""
    rpo_seconds: float
    """That is wanted."""
    bandwidth_p99: float | None
    """That holds it for 99 % of the time; None: nothing was measured, or no link is fast enough."""
    bandwidth_always: float | None
    bandwidth: float | None
    """That was asked about; None: none was."""
    expected_p50_seconds: float | None
    """Of the RPO at that bandwidth; None: none was asked about, or nothing was measured."""
    expected_p99_seconds: float | None
    expected_worst_seconds: float | None
