"""Senders of one VM to real receivers: paused, scheduled, changed while they run, and several at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from test_capture import TAG, Rig, rig
from test_causes import Replicated, replicated, web

from holdfast.replication.capture import Captured, tag_of
from holdfast.replication.health import ReplicationState
from holdfast.replication.sending import Sender
from holdfast.replication.statuses import status_of
from holdfast.replication.turns import TurnBook, TurnRecord
from holdfast.spec.replica import Consistency, ReplicaLimits, ReplicaStatus
from holdfast.spec.turn import Turn
from holdfast.vm.checkpoint_of_machine import GuestNotFrozen

__all__ = ["rig", "web"]
_SECONDS = 20.0


def status(sender: Sender) -> ReplicaStatus:
    return status_of("web", sender, time.monotonic())


async def until(sender: Sender, holds: Callable[[ReplicaStatus], bool]) -> ReplicaStatus:
    deadline = time.monotonic() + _SECONDS
    while not holds(found := status(sender)):
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)
    return found


async def test_one_that_is_paused_sends_nothing_and_then_only_what_changed(web: Replicated) -> None:
    await web.hosts.pair(ReplicaLimits())
    web.begin()
    before = await until(web.sender, lambda each: each.points > 1 and each.lag_bytes == 0)
    await web.end()
    web.sender.changed(web.sender.replication.model_copy(update={"paused": True}))
    web.task = asyncio.create_task(web.sender.run())
    await web.rig.write("disk0", 7, "1M", "64k")
    paused = await until(web.sender, lambda each: not web.sender.progress.connected)
    assert (paused.state, paused.health) == (ReplicationState.SUSPENDED, "warning")
    sent = web.sender.figures.now(time.monotonic()).cycles
    await asyncio.sleep(1.5)  # what is measured is that nothing is sent meanwhile
    assert web.sender.figures.now(time.monotonic()).cycles == sent
    web.book.record = web.book.record.model_copy(update={"paused": False})
    web.sender.changed(web.book.record)
    done = await until(web.sender, lambda each: each.points > before.points and each.lag_bytes == 0)
    assert (done.state, done.full_copies) == (ReplicationState.REPLICATING, 0)
    assert web.sender.progress.tries[-1].changed == 64 << 10


async def test_what_failed_over_to_another_host_is_sent_no_more_until_it_is_this_hosts_again(
    web: Replicated,
) -> None:
    await web.hosts.pair(ReplicaLimits())
    north = web.hosts.north
    turns = TurnBook(north.catalog, north.events)
    web.means = replace(web.means, turns=turns)
    web.begin()
    before = await until(web.sender, lambda each: each.points > 1 and each.lag_bytes == 0)
    known = TurnRecord(
        vm=web.replication.vm, name="web", turn=Turn.FENCED, term=2, peer="", since=web.replication.enabled
    )
    for turn in (Turn.FENCED, Turn.ADOPTING):
        turns.learn(web.replication.vm, known.model_copy(update={"turn": turn}))
        web.sender.wake()
        await web.rig.write("disk0", 7, "1M", "64k")
        moved = await until(web.sender, lambda each: not web.sender.progress.connected and each.lag_bytes > 0)
        assert moved.state == ReplicationState.FAILED_OVER
        assert "runs on another host, and it runs here too" in moved.findings[0]
    told = status_of("web", web.sender, time.monotonic(), "west")
    assert (told.moved_to, "runs on 'west'" in told.findings[0]) == ("west", True)
    turns.learn(web.replication.vm, known.model_copy(update={"turn": Turn.PRIMARY}))
    web.sender.wake()
    await until(web.sender, lambda each: each.points > before.points and each.lag_bytes == 0)
    assert web.sender.progress.tries[-1].changed == 64 << 10


async def test_a_cycle_that_gives_way_to_a_checkpoint_waits_and_has_not_failed(web: Replicated) -> None:
    await web.hosts.pair(ReplicaLimits())
    web.begin()
    before = await until(web.sender, lambda each: each.points > 1 and each.lag_bytes == 0)
    async with web.rig.machine.snapshot.barred():
        await web.rig.write("disk0", 7, "1M", "64k")
        for _ in range(15):  # what is measured is that nothing fails meanwhile
            await asyncio.sleep(0.1)
            assert status(web.sender).last_error == ""
    await until(web.sender, lambda each: each.points > before.points and each.lag_bytes == 0)
    assert web.sender.progress.failures == 0
    assert web.sender.progress.tries[-1].changed == 64 << 10


async def test_outside_of_its_schedule_nothing_is_sent_and_its_rpo_counts_with_the_gap(
    web: Replicated,
) -> None:
    await web.hosts.pair(ReplicaLimits())
    begin, end = (f"{datetime.now() + timedelta(hours=each):%H}:00" for each in (2, 3))
    web.begin(schedule=f"{begin}-{end}")
    await asyncio.sleep(0.5)
    waits = status(web.sender)
    assert (waits.points, waits.state) == (0, ReplicationState.READY_FOR_INITIAL)
    assert web.sender.target == 23 * 3600 + 1
    assert await web.rig.capture.since() == {"disk0": None, "disk1": None}
    web.book.record = web.book.record.model_copy(
        update={"settings": web.settings.model_copy(update={"schedule": "always", "points": "all:1m"})}
    )
    web.sender.changed(web.book.record)
    await until(web.sender, lambda each: each.points > 0)
    (held,) = await web.hosts.south.book.held()
    assert (held.points, web.sender.target) == ("all:1m", 1)
    web.book.record = web.book.record.model_copy(
        update={"settings": web.settings.model_copy(update={"points": "all:2m"})}
    )
    web.sender.changed(web.book.record)
    deadline = time.monotonic() + _SECONDS
    while (await web.hosts.south.book.held())[0].points != "all:2m":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@dataclass
class Guest:
    """Its agent."""

    answers: bool = True
    deaf: int = 0
    """For so many times that it is asked to let go."""
    done: list[str] = field(default_factory=list)

    async def while_frozen(self, work: Callable[[], Awaitable[Captured]]) -> Captured:
        if not self.answers:
            raise GuestNotFrozen("the guest agent does not answer")
        self.done.append("frozen")
        try:
            return await work()
        finally:
            await self.thaw()

    async def thaw(self) -> bool:
        self.done.append("thawed")
        self.deaf -= 1
        return self.answers and self.deaf < 0


def consistencies(web: Replicated) -> list[Consistency]:
    return [each.consistency for each in web.hosts.south.store.replica("web").points()]


async def test_points_are_application_consistent_as_often_as_was_said(web: Replicated) -> None:
    await web.hosts.pair(ReplicaLimits())
    web.quiesce = Guest()
    web.begin(consistent_seconds=2.0)
    deadline = time.monotonic() + _SECONDS
    while len(web.quiesce.done) < 4 or status(web.sender).points < 4:
        assert time.monotonic() < deadline
        await web.rig.write("disk0", 7, "1M", "4k")
        await asyncio.sleep(0.1)
    await web.end()
    found = consistencies(web)
    assert found[0] is Consistency.APPLICATION and Consistency.CRASH in found[1:]
    assert web.quiesce.done[:4] == ["frozen", "thawed"] * 2
    assert found.count(Consistency.APPLICATION) >= 2
    assert not web.book.record.freezing


async def test_where_the_agent_does_not_answer_points_come_all_the_same_and_that_is_told(
    web: Replicated,
) -> None:
    await web.hosts.pair(ReplicaLimits())
    web.quiesce = Guest(answers=False)
    web.begin(consistent_seconds=60.0)
    found = await until(web.sender, lambda each: each.points > 0)
    assert found.health == "warning" and "agent does not answer" in found.findings[0]
    assert set(consistencies(web)) == {Consistency.CRASH}
    assert web.book.record.freezing  # it may be frozen: asked again later, and by the next daemon
    await web.end()
    web.quiesce = Guest()
    web.begin(consistent_seconds=60.0)
    await until(web.sender, lambda each: each.health == "normal" and len(web.quiesce.done) > 2)
    assert web.quiesce.done[:3] == ["thawed", "frozen", "thawed"]
    await until(web.sender, lambda _: not web.book.record.freezing)


async def test_a_guest_that_an_earlier_daemon_left_frozen_is_let_go_though_nothing_can_be_sent(
    web: Replicated,
) -> None:
    """The receiver is not even paired, and the replication is paused."""
    web.quiesce = Guest(deaf=2)
    web.book.record = web.book.record.model_copy(update={"freezing": True, "paused": True})
    begun = time.monotonic()
    web.begin(consistent_seconds=60.0)
    await until(web.sender, lambda _: not web.book.record.freezing)
    assert time.monotonic() - begun < 5.0
    assert web.quiesce.done == ["thawed"] * 3


@pytest.fixture
async def east(rig: Rig, tmp_path: Path) -> AsyncIterator[Replicated]:
    async with replicated(rig, tmp_path / "others") as made:
        yield made


async def test_of_two_peers_one_that_hangs_does_not_slow_the_other(
    web: Replicated, east: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (web, east):
        await each.hosts.pair(ReplicaLimits())
        each.begin()
    assert len({TAG, tag_of(web.replication.id), tag_of(east.replication.id)}) == 3
    for each in (web, east):
        await until(each.sender, lambda found: found.points > 1)

    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(east.sender._link, "ship", hang)  # its snapshot stays, under those of the other
    await web.rig.write("disk0", 7, "1M", "64k")
    await asyncio.sleep(1.5)
    before = status(web.sender).points
    for number in range(3):
        await web.rig.write("disk1", 8 + number, "2M", "64k")
        await until(web.sender, lambda each: each.lag_bytes == 0)
    found = await until(web.sender, lambda each: each.points > before + 1)
    assert found.rpo_seconds is not None and found.rpo_seconds < 2.5
    late = status(east.sender).rpo_seconds
    assert late is not None and late > 1.5
    monkeypatch.undo()
    await east.end()
    east.task = asyncio.create_task(east.sender.run())
    await until(east.sender, lambda each: each.lag_bytes == 0 and (each.rpo_seconds or 9) < 2)
    assert [each.sender.replication.full_copies for each in (web, east)] == [0, 0]
