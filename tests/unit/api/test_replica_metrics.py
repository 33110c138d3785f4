"""What Prometheus is told of replicas."""

from fake_replicas import FakeHeld, status
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from holdfast.api.replica_metrics import ReplicaMetrics


async def test_replicas_are_told_by_vm_and_peer_and_only_while_there_are_any() -> None:
    registry = CollectorRegistry()
    metrics = ReplicaMetrics()
    registry.register(metrics)
    first = status("web", "south").model_copy(update={"counted_cycles": 7, "counted_sent_bytes": 1 << 40})
    unknown = status('d"b\n', "south").model_copy(update={"rpo_seconds": None})
    metrics.sent, metrics.held = (first, unknown), await FakeHeld().held()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }
    assert samples["holdfast_replica_rpo_seconds", "web", "south"] == 0.7
    assert samples["holdfast_replica_cycles_total", "web", "south"] == 7
    assert samples["holdfast_replica_sent_bytes_total", "web", "south"] == 1 << 40
    assert samples["holdfast_replica_health", "web", "south"] == 1
    assert samples["holdfast_replica_lag_bytes", 'd"b\n', "south"] == 4096
    assert ("holdfast_replica_rpo_seconds", 'd"b\n', "south") not in samples
    assert samples["holdfast_held_replica_used_bytes", "web", "north"] == 5 << 20
    assert samples["holdfast_held_replica_connected", "web", "north"] == 1
    metrics.sent = metrics.held = ()
    assert b'vm="web"' not in generate_latest(registry)
