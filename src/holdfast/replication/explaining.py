"""Why a replication is as it is: findings, the last fault, figures and the last cycles, put in order.

Pure: from a status, facts and what was tried to `ReplicaExplanation`. The rules are data, in `health.RULES`
and `causes.FAULTS`.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast.replication.causes import cause_of
from holdfast.replication.health import Facts, Finding, Health, findings
from holdfast.replication.pace import parse_limit
from holdfast.replication.progress import Progress, Try
from holdfast.spec.replica import HeldReplica, ReplicaStatus
from holdfast.spec.replica_figures import ReplicaCause, ReplicaEvidence, ReplicaExplanation
from holdfast.spec.units import format_size

_BY_FAULT = ("cannot-send", "retrying")
"""Findings that only say that there is a fault."""
_OF_RATE = ("falling-behind", "targets-missed", "late")
_SPARE = 1.25
"""What a link should have over what is needed of it."""
_FIGURES = (
    *("rpo_seconds", "rpo_p50_seconds", "rpo_p99_seconds", "target_seconds", "lag_bytes", "lag_seconds"),
    *("churn", "throughput", "wire_rate", "catch_up_seconds", "average_bytes", "largest_bytes"),
    *("average_latency", "missed_ratio", "cycles", "errors", "points", "full_copies"),
    *("limit", "peer_limit", "host_limit", "priority"),
)


@dataclass(frozen=True)
class Moment:
    """Now, by both clocks."""

    monotonic: float
    wall: datetime
    """With its zone, which limits by time of day are of."""

    def wall_of(self, monotonic: float) -> datetime:
        return self.wall - timedelta(seconds=self.monotonic - monotonic)


def explain(status: ReplicaStatus, facts: Facts, progress: Progress, now: Moment) -> ReplicaExplanation:
    """Of a VM that this host sends."""
    causes = _causes(status, facts, progress, now)
    wire = status.model_dump(mode="json")
    return ReplicaExplanation(
        vm=status.vm,
        peer=status.peer,
        held=False,
        state=status.state,
        health=_worst(causes),
        summary=_summary(status, causes),
        causes=tuple(causes),
        tried=_tried(status, progress, now),
        attempts=progress.attempts,
        next_try_seconds=status.next_cycle_seconds,
        figures={each: wire[each] for each in _FIGURES},
        evidence=tuple(_evidence(each, now) for each in progress.tries),
    )


@dataclass(frozen=True)
class HeldFacts:
    """What a receiver knows of a replica."""

    age: float | None
    """Seconds since the newest point's instant, by the source's clock; None: there is none."""
    paired: bool
    lost: int
    room: int | None
    """Bytes that all replicas of the source may take; None: all there is."""
    used: int
    """Bytes that they take."""
    refused: tuple[datetime, str, str] | None = None
    """When the source was refused last, since it sent something: the error's id and words."""


def explain_held(held: HeldReplica, facts: HeldFacts) -> ReplicaExplanation:
    """Of a VM that this host holds for another one."""
    causes = list(_held_causes(held, facts))
    causes.sort(key=lambda each: -Health[each.severity.upper()])
    summary = causes[0].cause if causes else _held_well(held, facts)
    return ReplicaExplanation(
        vm=held.name,
        peer=held.source,
        held=True,
        state="connected" if held.connected else "not-connected",
        health=_worst(causes),
        summary=summary,
        causes=tuple(causes),
        tried="" if held.connected else "The source connects again by itself, each 30 s at the latest.",
        attempts=0,
        next_try_seconds=None,
        figures={
            "newest_seconds": None if facts.age is None else round(facts.age, 1),
            "points": held.points,
            "lost_points": facts.lost,
            "used": held.used,
            "allowed": facts.room,
            "used_of_source": facts.used,
        },
        evidence=(),
    )


def _worst(causes: Sequence[ReplicaCause]) -> str:
    return max((Health[each.severity.upper()] for each in causes), default=Health.NORMAL).name.lower()


def _causes(status: ReplicaStatus, facts: Facts, progress: Progress, now: Moment) -> list[ReplicaCause]:
    found: list[ReplicaCause] = []
    if progress.fault is not None:
        cause = cause_of(progress.fault)
        found.append(
            ReplicaCause(
                rule=progress.fault.id,
                severity=cause.health.name.lower(),
                side=cause.side,
                since=now.wall_of(progress.failing_since),
                cause=cause.cause,
                cure=cause.cure,
                error_id=progress.fault.id,
                error=progress.fault.message,
            )
        )
    for each in findings(facts):
        if each.rule not in _BY_FAULT:
            found.append(_of_finding(each, status, now))
    return sorted(found, key=lambda each: -Health[each.severity.upper()])


def _of_finding(finding: Finding, status: ReplicaStatus, now: Moment) -> ReplicaCause:
    rate = finding.rule in _OF_RATE and status.churn > 0
    since = None
    if finding.rule in ("late", "unsent", "falling-behind") and status.rpo_seconds is not None:
        since = now.wall - timedelta(seconds=status.rpo_seconds)
    return ReplicaCause(
        rule=finding.rule,
        severity=finding.health.name.lower(),
        side=finding.side,
        since=since,
        cause=finding.cause,
        cure=f"{finding.cure} {rate_advice(status, now.wall)}" if rate else finding.cure,
    )


def rate_advice(status: ReplicaStatus, wall: datetime) -> str:
    """What limit, or else which RPO, would hold at the churn of now. `wall`: local time."""
    packed = status.wire_rate / status.throughput if status.throughput > 0 else 1.0
    needed = status.churn * min(max(packed, 0.01), 1.1) * _SPARE
    words = [
        f"The guest changes {_rate(status.churn)}; the link carries {_rate(status.wire_rate)}, "
        f"which are {_rate(status.throughput)} of changes."
    ]
    named = (("VM", status.limit), ("peer", status.peer_limit), ("host", status.host_limit))
    rates = {name: parse_limit(text).at(wall) for name, text in named}
    set_ones = {name: rate for name, rate in rates.items() if rate is not None}
    tight = min(set_ones, key=lambda name: set_ones[name], default=None)
    if tight is not None and set_ones[tight] < needed:
        words.append(
            f"The limit of the {tight} is {_rate(set_ones[tight])} now; {_rate(needed)} would hold "
            f"the RPO of {status.target_seconds:g} s."
        )
    elif status.throughput < status.churn:
        words.append(
            f"A link that carries {_rate(needed)} would hold the RPO of {status.target_seconds:g} s."
        )
    if status.throughput > status.churn > 0 and status.rpo_p99_seconds is not None:
        words.append(f"As it is, an RPO of {status.rpo_p99_seconds:.1f} s holds for 99 % of the time.")
    return " ".join(words)


def _rate(bytes_a_second: float) -> str:
    return f"{format_size(round(bytes_a_second))}/s"


def _summary(status: ReplicaStatus, causes: Sequence[ReplicaCause]) -> str:
    if causes:
        return causes[0].cause
    if status.rpo_seconds is None:
        return "All is well: the initial copy is on its way, or waits for the VM to start."
    missed = f", and was within it {1 - status.missed_ratio:.1%} of the time"
    return (
        f"All is well: the newest of {status.points} points is {status.rpo_seconds:.1f} s old, the target is "
        f"{status.target_seconds:g} s{missed}; {format_size(status.lag_bytes)} wait."
    )


def _tried(status: ReplicaStatus, progress: Progress, now: Moment) -> str:
    if progress.comparing:
        return (
            "What the guest changed is not known any more (QEMU ended, or the VM was put back): both sides "
            "are compared, and only what differs is sent. Points stay."
        )
    if progress.initial:
        return "The initial copy is on its way."
    if progress.fault is None:
        return ""
    count = "1 try" if progress.attempts == 1 else f"{progress.attempts} tries"
    since = now.wall_of(progress.failing_since).strftime("%Y-%m-%d %H:%M:%S")
    following = (
        "one is under way"
        if status.next_cycle_seconds is None
        else f"the next one begins in {status.next_cycle_seconds:.1f} s"
    )
    return f"{count} failed since {since}; {following}. They go on by themselves, after 30 s at most."


def _evidence(each: Try, now: Moment) -> ReplicaEvidence:
    return ReplicaEvidence(
        ended=now.wall_of(each.ended),
        seconds=round(each.seconds, 3),
        changed_bytes=each.changed,
        sent_bytes=each.sent,
        error_id=each.fault.id if each.fault else "",
        error=each.fault.message if each.fault else "",
    )


_OLD = 120.0
"""Seconds after which a newest point is worth a word: a source sends each 10 s though nothing changed."""
_SKEW = 5.0


def _held_causes(held: HeldReplica, facts: HeldFacts) -> Sequence[ReplicaCause]:
    found: list[ReplicaCause] = []

    def add(
        rule: str, severity: str, side: str, cause: str, cure: str, since: datetime | None = None
    ) -> None:
        found.append(
            ReplicaCause(rule=rule, severity=severity, side=side, since=since, cause=cause, cure=cure)
        )

    if not facts.paired:
        add(
            *("source-not-paired", "critical", "replica"),
            "The host that sent this replica is paired no more: nothing comes",
            "Pair it again (`holdfast replica accept`), or remove the replica.",
        )
    if facts.room is not None and facts.used >= facts.room:
        add(
            *("replica-full", "critical", "replica"),
            f"The source's replicas take {format_size(facts.used)} of {format_size(facts.room)} allowed",
            "Allow more by pairing anew (`holdfast replica accept --space`), or remove replicas.",
        )
    if facts.refused is not None:
        at, error_id, message = facts.refused
        found.append(
            ReplicaCause(
                rule="source-refused",
                severity="critical",
                side="replica",
                since=at,
                cause="This host refused what the source sent last",
                cure="Look the error up in the guide; `holdfast replica explain` on the source says more.",
                error_id=error_id,
                error=message,
            )
        )
    if facts.lost:
        add(
            *("points-lost", "warning", "replica"),
            f"{facts.lost} of {held.points} points are damaged",
            "Look for a failing disk on this host; other points can be used.",
        )
    if facts.age is not None and facts.age < -_SKEW:
        add(
            *("points-in-the-future", "warning", "source"),
            f"The newest point is {-facts.age:.0f} s later than the clock of this host",
            "See that both hosts' clocks are kept (NTP).",
        )
    if facts.paired and not held.connected and not (facts.age is not None and facts.age < _OLD):
        add(
            *("source-gone", "warning", "link"),
            "The source is not connected",
            "See that it runs and reaches this host; `holdfast replica explain` there says why not. "
            "Of a VM that is off nothing needs to come. Where it failed over to another host, let that one "
            f"send it: `holdfast replica accept-from {shlex.quote(held.name)} --peer NAME`.",
            held.newest,
        )
    return found


def _held_well(held: HeldReplica, facts: HeldFacts) -> str:
    if facts.age is None:
        return "All is well: the initial copy is on its way."
    return f"All is well: the newest of {held.points} points is {facts.age:.1f} s old."
