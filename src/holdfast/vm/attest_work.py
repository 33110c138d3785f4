"""Attesting as an operation, and again and again while a VM runs."""

import asyncio
import time
from collections.abc import Callable

import structlog

from holdfast.operations.procedure import Job, Procedure
from holdfast.vm.attestation import Attestation
from holdfast.vm.trust_records import TrustRecords

log = structlog.get_logger(__name__)

_LOOK = 10.0  # seconds at most between two looks at which VMs are due


class _AttestVm:
    title = "ask the guest's TPM and judge its answer"
    weight = 1.0

    def __init__(self, attestation: Attestation) -> None:
        self._attestation = attestation

    async def do(self, job: Job) -> None:
        verdict = await self._attestation.attest(job.params["vm"], job.progress)
        job.notes["verdict"] = verdict.model_dump(mode="json")

    async def undo(self, job: Job) -> None:
        """Nothing: the guest was only asked, and a verdict that was reached stays true."""


def procedures(attestation: Attestation) -> list[Procedure]:
    return [Procedure("vm.attest", (_AttestVm(attestation),), lambda job: job.notes["verdict"])]


class AttestSchedule:
    """Attests the running VMs that want it, one after another, each in its own interval."""

    def __init__(
        self, attestation: Attestation, records: TrustRecords, running: Callable[[], set[str]]
    ) -> None:
        """`running` tells the ids of VMs with a machine."""
        self._attestation = attestation
        self._records = records
        self._running = running
        self._next: dict[str, float] = {}

    async def keep(self) -> None:
        """For ever."""
        while True:
            intervals = await self._records.intervals()
            running = self._running()
            self._next = {vm: when for vm, when in self._next.items() if vm in intervals and vm in running}
            for vm, interval in intervals.items():
                if vm in running and self._is_due(vm, interval):
                    await self._attest(vm)
            await asyncio.sleep(_LOOK)

    def _is_due(self, vm: str, interval: int) -> bool:
        """A VM is due a whole interval after it was first seen running: it boots meanwhile."""
        now = time.monotonic()
        due = min(self._next.setdefault(vm, now + interval), now + interval)
        if now < due:
            return False
        self._next[vm] = now + interval
        return True

    async def _attest(self, vm: str) -> None:
        try:
            await self._attestation.attest_on_schedule(vm)
        except Exception:
            log.exception("a scheduled attestation failed", vm=vm)
