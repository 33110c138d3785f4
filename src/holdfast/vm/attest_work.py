"""Attesting as an operation, and again and again while a VM runs."""

import asyncio
import time
from collections.abc import Callable

import structlog

from holdfast.operations.procedure import Job, Procedure
from holdfast.vm.attestation import Attestation
from holdfast.vm.trust_records import TrustRecords

log = structlog.get_logger(__name__)

_LOOK = 10.0  # seconds between two looks at which VMs are due
_AT_ONCE = 4


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
    """Attests the running VMs that want it, a few at once, each in its own interval."""

    def __init__(
        self, attestation: Attestation, records: TrustRecords, boots: Callable[[], dict[str, object]]
    ) -> None:
        """`boots` tells of each running VM what is another after every start and restart of it."""
        self._attestation = attestation
        self._records = records
        self._boots = boots
        self._due: dict[str, tuple[object, float]] = {}
        """Of each VM, its boot and when it is next due."""
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def keep(self) -> None:
        """For ever."""
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("the attestations that are due could not be read")
            await asyncio.sleep(_LOOK)

    async def _look(self) -> None:
        intervals, boots = await self._records.intervals(), self._boots()
        wanted = {vm: seconds for vm, seconds in intervals.items() if vm in boots}
        self._due = {vm: due for vm, due in self._due.items() if vm in wanted}
        self._under_way = {vm: task for vm, task in self._under_way.items() if not task.done()}
        for vm, interval in wanted.items():
            if vm not in self._under_way and self._is_due(vm, boots[vm], interval):
                self._under_way[vm] = asyncio.create_task(self._attest(vm))

    def _is_due(self, vm: str, boot: object, interval: int) -> bool:
        """A VM is due a whole interval after it was first seen so booted: it comes up meanwhile."""
        now = time.monotonic()
        seen, due = self._due.get(vm, (None, 0.0))
        if seen != boot:
            due = now + interval
        due = min(due, now + interval)
        self._due[vm] = (boot, due if now < due else now + interval)
        return now >= due

    async def _attest(self, vm: str) -> None:
        async with self._at_once:
            try:
                await self._attestation.attest_on_schedule(vm)
            except Exception:
                log.exception("a scheduled attestation failed", vm=vm)
