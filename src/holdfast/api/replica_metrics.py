"""Prometheus metrics of replicas: VMs that are sent, by VM and peer; those that are held, by name and source.

What is told of them is set before each collection; a VM that is replicated no more is told of no more.
"""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast.spec.replica import HeldReplica, ReplicaStatus

_HEALTH = {"normal": 0, "warning": 1, "critical": 2}

Sent = Callable[[ReplicaStatus], float | None]
_SENT_GAUGES: dict[str, tuple[str, Sent]] = {
    "rpo_seconds": ("Age of the newest point over there", lambda each: each.rpo_seconds),
    "rpo_target_seconds": ("The RPO that is wanted", lambda each: each.target_seconds),
    "rpo_p50_seconds": ("Median RPO of twelve hours", lambda each: each.rpo_p50_seconds),
    "rpo_p99_seconds": ("99th percentile of the RPO of twelve hours", lambda each: each.rpo_p99_seconds),
    "lag_bytes": ("Changed here and not whole over there", lambda each: each.lag_bytes),
    "churn_bytes_per_second": ("That the guest changes", lambda each: each.churn),
    "throughput_bytes_per_second": ("Of changes that arrive", lambda each: each.throughput),
    "points": ("Points over there", lambda each: each.points),
    "health": ("0 normal, 1 warning, 2 critical", lambda each: _HEALTH.get(each.health)),
    "full_copies": ("Beyond the initial one, since it was enabled", lambda each: each.full_copies),
}
_SENT_COUNTERS: dict[str, tuple[str, Sent]] = {
    "cycles": ("Cycles that arrived", lambda each: each.counted_cycles),
    "failures": ("Cycles that failed", lambda each: each.counted_failures),
    "changed_bytes": ("Bytes of changes that arrived", lambda each: each.counted_changed_bytes),
    "sent_bytes": ("Bytes on the link", lambda each: each.counted_sent_bytes),
}
Held = Callable[[HeldReplica], float | None]
_HELD_GAUGES: dict[str, tuple[str, Held]] = {
    "points": ("Points of a replica held here", lambda each: each.points),
    "lost_points": ("Points that are lost by damage", lambda each: each.lost),
    "used_bytes": ("Room that a replica takes here", lambda each: each.used),
    "connected": ("1: its source is connected", lambda each: each.connected),
    "newest_timestamp_seconds": (
        "Instant of the newest point, by the source's clock",
        lambda each: each.newest.timestamp() if each.newest else None,
    ),
}


class ReplicaMetrics(Collector):
    def __init__(self) -> None:
        self.sent: Sequence[ReplicaStatus] = ()
        self.held: Sequence[HeldReplica] = ()

    def collect(self) -> Iterator[Metric]:
        kinds = ((GaugeMetricFamily, _SENT_GAUGES), (CounterMetricFamily, _SENT_COUNTERS))
        for family, wanted in kinds:
            for name, (words, value) in wanted.items():
                told = family(f"holdfast_replica_{name}", words, labels=["vm", "peer", "sent_on"])
                for each in self.sent:
                    # A replica that is sent on may have the name of a VM.
                    _add(told, [each.vm, each.peer, str(each.sent_on).lower()], value(each))
                yield told
        for name, (words, of_held) in _HELD_GAUGES.items():
            gauge = GaugeMetricFamily(f"holdfast_held_replica_{name}", words, labels=["name", "source"])
            for held in self.held:
                _add(gauge, [held.name, held.source], of_held(held))
            yield gauge


def _add(family: GaugeMetricFamily | CounterMetricFamily, labels: list[str], value: float | None) -> None:
    """What is not known is not told."""
    if value is not None:
        family.add_metric(labels, float(value))
