"""Checkpoints made by themselves while a VM runs, and the oldest of those deleted.

What was made when is read from the checkpoints: nothing else is remembered over a restart of the daemon.
Those that people made are never deleted here.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import structlog

from holdfast.spec.checkpoint import CheckpointCreate, CheckpointSchedule
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import VmState
from holdfast.vm.checkpoint_records import Checkpoint, CheckpointRecords, CheckpointTree
from holdfast.vm.checkpoints import Checkpoints
from holdfast.vm.owner import VmOwner
from holdfast.vm.registry import VmRegistry

log = structlog.get_logger(__name__)

_LOOK = 15.0  # seconds between two looks at what is due
_AGAIN = 300.0  # seconds until what failed is tried again, where the interval is longer
ACTOR = "schedule"


def is_due(tree: CheckpointTree, now: datetime) -> bool:
    """Whether the newest scheduled checkpoint is a whole interval old."""
    every = tree.schedule.every_seconds
    if every is None:
        return False
    made = [each.created for each in tree.checkpoints if each.scheduled]
    return not made or now - max(made) >= timedelta(seconds=every)


def outlived(tree: CheckpointTree, now: datetime) -> tuple[Checkpoint, ...]:
    """Scheduled checkpoints beyond the number or the age that is kept; the oldest first."""
    made = [each for each in tree.checkpoints if each.scheduled]
    schedule: CheckpointSchedule = tree.schedule
    beyond = set(made[: max(0, len(made) - schedule.keep)])
    if schedule.max_age_seconds is not None:
        oldest = now - timedelta(seconds=schedule.max_age_seconds)
        beyond |= {each for each in made if each.created < oldest}
    return tuple(each for each in made if each in beyond)


class CheckpointScheduler:
    """Looks now and then which VMs are due."""

    def __init__(self, checkpoints: Checkpoints, records: CheckpointRecords, registry: VmRegistry) -> None:
        self._checkpoints = checkpoints
        self._records = records
        self._registry = registry
        self._not_before: dict[str, float] = {}

    async def keep(self) -> None:
        """For ever."""
        while True:
            try:
                for vm_id in await self._records.schedules():
                    await self._look(vm_id)
            except Exception:
                log.exception("the checkpoints that are due could not be made")
            await asyncio.sleep(_LOOK)

    async def _look(self, vm_id: str) -> None:
        try:
            owner = await self._registry.named(vm_id)
            if owner.record.operation is not None or self._not_before.get(vm_id, 0.0) > time.monotonic():
                return
            await self._work(owner)
        except HoldfastError as error:
            self._not_before[vm_id] = time.monotonic() + _AGAIN
            log.warning("a scheduled checkpoint was refused", vm=vm_id, error=error.message, cure=error.cure)

    async def _work(self, owner: VmOwner) -> None:
        """One operation at most: what else is due is found at the next look."""
        tree, now = await self._records.tree(owner.record.id), datetime.now(UTC)
        doomed = outlived(tree, now)
        if doomed:
            await self._checkpoints.forget(owner, doomed, ACTOR)
        elif is_due(tree, now) and owner.record.state is VmState.RUNNING:
            every = float(tree.schedule.every_seconds or 0)
            self._not_before[owner.record.id] = time.monotonic() + min(every, _AGAIN)
            request = CheckpointCreate(type=tree.schedule.type)
            await self._checkpoints.create(owner.record.id, request, ACTOR, scheduled=True)
