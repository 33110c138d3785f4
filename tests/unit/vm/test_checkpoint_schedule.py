"""Which scheduled checkpoints are due, and which are deleted; those that people made never are."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.spec.checkpoint import CheckpointCreate, CheckpointSchedule, CheckpointType, CheckpointWish
from holdfast.spec.units import GIB
from holdfast.spec.vm import VmSpec, VmState
from holdfast.vm.checkpoint_records import Checkpoint, CheckpointTree
from holdfast.vm.checkpoint_schedule import CheckpointScheduler, is_due, outlived

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def checkpoint(hours: float, *, scheduled: bool = True) -> Checkpoint:
    return Checkpoint(
        id=f"{hours} {scheduled}",
        name=f"{hours} ago",
        parent=None,
        type=CheckpointType.PRODUCTION,
        notes="",
        created=NOW - timedelta(hours=hours),
        spec=VmSpec(cpus=1, memory=GIB),
        running_spec=None,
        machine_type=None,
        acceleration=None,
        size=0,
        stall_seconds=None,
        scheduled=scheduled,
    )


def tree(*made: Checkpoint, **schedule: int) -> CheckpointTree:
    return CheckpointTree(made, schedule=CheckpointSchedule.model_validate(schedule))


def test_one_is_due_a_whole_interval_after_the_last_scheduled_one() -> None:
    assert not is_due(tree(), NOW)
    assert is_due(tree(every_seconds=3600), NOW)
    assert is_due(tree(checkpoint(0.5, scheduled=False), every_seconds=3600), NOW)
    assert not is_due(tree(checkpoint(0.5), every_seconds=3600), NOW)
    assert is_due(tree(checkpoint(5), checkpoint(1), every_seconds=3600), NOW)


def test_the_oldest_beyond_number_and_age_go_and_never_those_of_people() -> None:
    made = [checkpoint(hours, scheduled=hours != 30) for hours in (40, 30, 20, 10, 1)]
    assert outlived(tree(*made, keep=10), NOW) == ()
    assert [each.name for each in outlived(tree(*made, keep=2), NOW)] == ["40 ago", "20 ago"]
    aged = outlived(tree(*made, keep=10, max_age_seconds=15 * 3600), NOW)
    assert [each.name for each in aged] == ["40 ago", "20 ago"]


class Book:
    """Stands in for records, registry and checkpoints: one VM, and what was asked for."""

    def __init__(self, found: CheckpointTree, state: VmState) -> None:
        self.found = found
        self.owner = SimpleNamespace(record=SimpleNamespace(id="v", state=state, operation=None))
        self.asked: list[Any] = []

    async def tree(self, vm_id: str) -> CheckpointTree:
        return self.found

    async def named(self, name: str) -> Any:
        return self.owner

    async def create(self, name: str, request: CheckpointCreate, actor: str, *, scheduled: bool) -> None:
        assert scheduled and actor == "schedule"
        self.asked.append(request.type)

    async def forget(self, owner: Any, doomed: tuple[Checkpoint, ...], actor: str) -> None:
        self.asked.append([each.name for each in doomed])


@pytest.mark.parametrize(
    ("found", "state", "asked"),
    [
        (tree(every_seconds=60, keep=1), VmState.RUNNING, [CheckpointWish.PRODUCTION]),
        (tree(every_seconds=60, keep=1), VmState.OFF, []),
        (tree(checkpoint(9), checkpoint(8), every_seconds=60, keep=1), VmState.OFF, [["9 ago"]]),
    ],
)
async def test_one_thing_is_done_at_a_look(found: CheckpointTree, state: VmState, asked: list[Any]) -> None:
    book = cast(Any, Book(found, state))
    scheduler = CheckpointScheduler(book, book, book)
    await scheduler._look("v")
    assert book.asked == asked
    if asked == [CheckpointWish.PRODUCTION]:
        await scheduler._look("v")
        assert book.asked == asked, "not again before it can be seen"
    book.owner.record.operation = "another"
    await scheduler._look("v")
    assert book.asked == asked
