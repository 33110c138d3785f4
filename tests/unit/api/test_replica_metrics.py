"""What Prometheus is told of replicas."""

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from holdfast.api.replica_metrics import ReplicaMetrics
from holdfast.spec.replica import ReplicaEnable


async def test_replicas_are_told_by_vm_and_peer_and_only_while_there_are_any(daemon: Any) -> None:
    web = (await daemon.replicas.sent.enable("web", ReplicaEnable(peer="south"))).model_copy
    registry = CollectorRegistry()
    metrics = ReplicaMetrics()
    registry.register(metrics)
    first = web(update={"counted_cycles": 7, "counted_sent_bytes": 1 << 40})
    unknown = web(update={"vm": 'd"b\n', "rpo_seconds": None})
    metrics.sent, metrics.held = (first, unknown), await daemon.replicas.held.held()
    samples = {
        (sample.name, sample.labels.get("vm", sample.labels.get("name"))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }
    assert samples["holdfast_replica_rpo_seconds", "web"] == 0.7
    assert samples["holdfast_replica_cycles_total", "web"] == 7
    assert samples["holdfast_replica_sent_bytes_total", "web"] == 1 << 40
    assert samples["holdfast_replica_health", "web"] == 1
    assert samples["holdfast_replica_lag_bytes", 'd"b\n'] == 4096
    assert ("holdfast_replica_rpo_seconds", 'd"b\n') not in samples
    assert samples["holdfast_held_replica_used_bytes", "web"] == 5 << 20
    assert samples["holdfast_held_replica_connected", "web"] == 1
    metrics.sent = metrics.held = ()
    assert b'vm="web"' not in generate_latest(registry)
