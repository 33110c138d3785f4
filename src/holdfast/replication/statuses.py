"""What is told of one replication now: from a sender's figures and progress to the words of the API. Pure."""

import time
from datetime import UTC, datetime, timedelta

from holdfast.catalog.clock import aware, now
from holdfast.replication.causes import cause_of
from holdfast.replication.figures import Figures
from holdfast.replication.health import Facts, ReplicationState, findings, health
from holdfast.replication.moving import Phase
from holdfast.replication.progress import Progress
from holdfast.replication.replicating import Replicator
from holdfast.spec.replica import ReplicaStatus
from holdfast.spec.replica_figures import ReplicaProgress

_LATEST_US = datetime(9999, 1, 1, tzinfo=UTC).timestamp() * 1e6


def status_of(vm: str, sender: Replicator, at: float, moved_to: str = "") -> ReplicaStatus:
    """Of a replication now.

    Args:
        at: now, by the monotonic clock.
        moved_to: name of the host that the VM failed over to.
    """
    progress, figures = sender.progress, sender.figures.now(at)
    settings = sender.replication.settings
    facts = facts_of(sender, figures, at, moved_to)
    found = findings(facts)
    lag = figures.lag_bytes
    return ReplicaStatus(
        vm=vm,
        peer=sender.replication.peer,
        state=facts.state,
        health=health(found).name.lower(),
        rpo_seconds=_rounded(figures.rpo_seconds),
        rpo_p50_seconds=_rounded(figures.rpo_p50_seconds),
        rpo_p99_seconds=_rounded(figures.rpo_p99_seconds),
        lag_bytes=lag,
        lag_seconds=_rounded(figures.rpo_seconds) if lag or figures.rpo_seconds is None else 0.0,
        full_copies=sender.replication.full_copies,
        points=progress.points,
        target_seconds=settings.rpo_seconds,
        throughput=round(figures.throughput, 1),
        churn=round(figures.churn, 1),
        wire_rate=round(progress.wire_rate(), 1),
        next_cycle_seconds=None if progress.next_at is None else round(max(0.0, progress.next_at - at), 3),
        catch_up_seconds=_rounded(figures.catch_up_seconds),
        progress=progress_of(progress, lag),
        cycles=figures.cycles,
        errors=figures.errors,
        average_bytes=round(figures.average_bytes, 1),
        largest_bytes=figures.largest_bytes,
        average_latency=round(figures.average_latency, 4),
        missed_ratio=round(figures.missed_ratio, 4),
        last_sync=_ago(figures.since_arrived),
        last_test=_moment(progress.tested_us),
        last_error=progress.error,
        last_error_id=progress.fault.id if progress.fault else "",
        failing_seconds=facts.cannot_send_for,
        attempts=progress.attempts,
        findings=tuple(f"{each.cause}. {each.cure}" for each in found),
        counted_cycles=progress.cycles,
        counted_failures=progress.failures,
        counted_changed_bytes=progress.changed,
        counted_sent_bytes=progress.sent,
        priority=settings.priority,
        limit=settings.limit,
        moved_to=moved_to,
    )


def facts_of(sender: Replicator, figures: Figures, at: float, moved_to: str = "") -> Facts:
    """What the rules of health look at; arguments as those of `status_of`."""
    progress, replication = sender.progress, sender.replication
    return Facts(
        state=state_of(sender),
        target=sender.target,
        rpo=figures.rpo_seconds,
        missed=figures.missed_ratio,
        since_enabled=(aware(now()) - replication.enabled).total_seconds(),
        cannot_send=progress.error,
        cannot_send_cure=_cure(progress) or Facts.cannot_send_cure,
        cannot_send_for=round(at - progress.failing_since, 1) if progress.fault else 0.0,
        catches_up=not sender.falls_behind(figures),
        not_consistent=progress.not_consistent,
        fenced=sender.fenced,
        moved_to=repr(moved_to) if moved_to else "another host",
        both_run=sender.fenced and sender.runs,
        lost_points=progress.lost,
        ahead=max(0.0, progress.newest / 1000 - time.time()),
        machine_failed=sender.machine_failed,
        rests_unsent=sender.rests_unsent,
        undecided=sender.undecided,
        silent=round(sender.waits_for_source, 1),
        churn=figures.churn,
        throughput=figures.throughput,
    )


def _cure(progress: Progress) -> str:
    return cause_of(progress.fault).cure if progress.fault else ""


def state_of(sender: Replicator) -> ReplicationState:
    progress = sender.progress
    if sender.fenced:
        return ReplicationState.FAILED_OVER
    if sender.undecided:
        return ReplicationState.FAILOVER_WAITING
    if sender.replication.paused:
        return ReplicationState.SUSPENDED
    if progress.comparing:
        return ReplicationState.RESYNCHRONISING
    if progress.initial:
        return ReplicationState.INITIAL_IN_PROGRESS
    if not sender.replication.initial:
        return ReplicationState.READY_FOR_INITIAL
    return ReplicationState.REPLICATING


def progress_of(progress: Progress, lag: int) -> ReplicaProgress | None:
    """`lag`: bytes that wait, as they were counted last."""
    moving, rate = progress.moving, progress.rate()
    if moving is None:
        return None
    total = max(moving.done, lag if moving.phase is Phase.CHANGES else moving.total)
    left = total - min(moving.done, total)
    return ReplicaProgress(
        phase=moving.phase,
        done_bytes=min(moving.done, total),
        total_bytes=total,
        rate=None if rate is None else round(rate, 1),
        seconds_left=round(left / rate, 1) if rate else None,
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _moment(microseconds: int) -> datetime | None:
    """What the receiver says: any number."""
    if not 0 < microseconds < _LATEST_US:
        return None
    return datetime.fromtimestamp(microseconds / 1e6, UTC)


def _ago(seconds: float | None) -> datetime | None:
    return None if seconds is None else aware(now()) - timedelta(seconds=seconds)
