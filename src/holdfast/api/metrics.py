"""Prometheus metrics, in a registry of their own; counts of VMs and operations are read when asked."""

import time
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from holdfast.api.replica_metrics import ReplicaMetrics
from holdfast.api.services import Services
from holdfast.spec.paging import PageQuery
from holdfast.spec.vm import VmState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Owner of the counters of one daemon."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "holdfast_requests", "Requests answered", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "holdfast_request_seconds", "Time to answer", ["method", "route"], registry=self._registry
        )
        self._vms = Gauge("holdfast_vms", "VMs by state", ["state"], registry=self._registry)
        self._running = Gauge("holdfast_operations_running", "Operations under way", registry=self._registry)
        self._trust = Gauge(
            "holdfast_trust_verdict",
            "Last verdict on a VM's boot: 1 passed, 0 failed",
            ["vm"],
            registry=self._registry,
        )
        self._replicas = ReplicaMetrics()
        self._registry.register(self._replicas)
        build = Gauge("holdfast_build_info", "This build", ["version"], registry=self._registry)
        build.labels(version("holdfast")).set(1)

    def answered(self, method: str, route: str, status: int, began: float) -> None:
        """`route` is a template; `began` is of time.monotonic."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(time.monotonic() - began)

    async def text(self, services: Services) -> bytes:
        counts = await services.vm_counts.count_by_state()
        for state in VmState:
            self._vms.labels(state.value).set(counts.get(state.value, 0))
        running = await services.operations.list(PageQuery(limit=1), running_only=True)
        self._running.set(running.total)
        self._trust.clear()
        for vm, passed in (await services.trust.passed()).items():
            self._trust.labels(vm).set(passed)
        self._replicas.sent = await services.replicas.sent.list(None)
        self._replicas.held = await services.replicas.held.held()
        return generate_latest(self._registry)
