"""Capacity plans as people ask for them: of one VM, or of all with what they need together."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from holdfast.replication.capacity import Measured, expected_rpo, measured, needed_bandwidth
from holdfast.replication.history import Kept
from holdfast.replication.pace import BadLimit, parse_limit
from holdfast.replication.service import Replications
from holdfast.spec.replica import ReplicaStatus
from holdfast.spec.replica_figures import ReplicaPlan


@dataclass(frozen=True)
class Wanted:
    rpo_seconds: float | None
    """None: each VM's own target."""
    bandwidth: float | None
    """Bytes a second; None: not asked about."""


def parse_bandwidth(text: str) -> float:
    """Bytes a second of `200Mbit/s`. Raises BadLimit."""
    limit = parse_limit(text)
    if limit.rate is None or limit.windows:
        raise BadLimit(
            f"{text[:100]!r} is no one bandwidth", value=text[:200], cure="Write for example 200Mbit/s."
        )
    return limit.rate


class Planning:
    def __init__(self, sent: Replications) -> None:
        self._sent = sent

    async def plan(
        self, name: str | None, rpo_seconds: float | None, bandwidth: str | None, since: timedelta
    ) -> tuple[ReplicaPlan, ...]:
        """Of one VM, or of all, and behind those what they need together.

        Raises VmNotFound, NotReplicated, BadLimit, BadHistoryTime.
        """
        wanted = Wanted(rpo_seconds, None if bandwidth is None else parse_bandwidth(bandwidth))
        profiles = await self._sent.profiles(name, since)
        return await asyncio.to_thread(_plans, profiles, wanted)


Profiles = Sequence[tuple[ReplicaStatus, Sequence[Kept]]]


def _plans(profiles: Profiles, wanted: Wanted) -> tuple[ReplicaPlan, ...]:
    """Some tenths of a second for each."""
    plans = [_plan(status, measured([kept]), wanted) for status, kept in profiles]
    if len(profiles) > 1:
        plans.append(_together(profiles, wanted))
    return tuple(plans)


def _ratio(statuses: Sequence[ReplicaStatus]) -> float:
    changed = sum(each.counted_changed_bytes for each in statuses)
    sent = sum(each.counted_sent_bytes for each in statuses)
    return sent / changed if changed else 1.0


def _together(profiles: Profiles, wanted: Wanted) -> ReplicaPlan:
    statuses = [status for status, _ in profiles]
    shortest = min(statuses, key=lambda each: each.target_seconds)
    peers = {each.peer for each in statuses}
    plan = _plan(shortest, measured([kept for _, kept in profiles]), wanted, _ratio(statuses))
    return plan.model_copy(update={"vm": "", "peer": peers.pop() if len(peers) == 1 else ""})


def _plan(status: ReplicaStatus, of: Measured, wanted: Wanted, ratio: float | None = None) -> ReplicaPlan:
    ratio = _ratio([status]) if ratio is None else ratio
    rpo = wanted.rpo_seconds or status.target_seconds
    expected = None if wanted.bandwidth is None else expected_rpo(of, wanted.bandwidth, ratio)
    return ReplicaPlan(
        vm=status.vm,
        peer=status.peer,
        measured_seconds=float(of.seconds.sum()),
        churn=round(of.average, 1),
        churn_peak=round(of.peak, 1),
        wire_ratio=round(ratio, 4),
        rpo_seconds=rpo,
        bandwidth_p99=_rounded(needed_bandwidth(of, rpo, ratio)),
        bandwidth_always=_rounded(needed_bandwidth(of, rpo, ratio, always=True)),
        bandwidth=wanted.bandwidth,
        expected_p50_seconds=_rounded(expected.p50) if expected else None,
        expected_p99_seconds=_rounded(expected.p99) if expected else None,
        expected_worst_seconds=_rounded(expected.worst) if expected else None,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
