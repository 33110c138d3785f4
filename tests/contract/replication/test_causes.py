"""Why a replication fails, told apart: a real QEMU, a real receiver, and what goes wrong in between."""

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from test_capture import DISKS, SIZE, Guest, Rig, rig, run
from test_listening import Hosts

from holdfast.replication import sending
from holdfast.replication.attachments import Attachments, FirmwareChanging
from holdfast.replication.dispatch import Dispatch
from holdfast.replication.explaining import Moment, explain, explain_held
from holdfast.replication.replicating import Means
from holdfast.replication.replication_records import Replication
from holdfast.replication.sending import Sender, Vm
from holdfast.replication.statuses import facts_of, status_of
from holdfast.spec.replica import ReplicaEnable, ReplicaLimits, ReplicaPeer
from holdfast.spec.replica_figures import ReplicaExplanation
from holdfast.spec.vm import Disk, KernelBoot, VmSpec
from holdfast.vm.rest import Rest

__all__ = ["rig"]
_SECONDS = 20.0


class Book:
    """The records of one replication, in memory."""

    def __init__(self, replication: Replication) -> None:
        self.record = replication

    async def _changed(self, **change: Any) -> Replication:
        self.record = self.record.model_copy(update=change)
        return self.record

    async def arrived(self, *_: Any, full: bool) -> Replication:
        return await self._changed(
            initial=True, full_copies=self.record.full_copies + (full and self.record.initial)
        )

    async def carry(self, _: Any, carried: Any) -> Replication:
        return await self._changed(carried=carried, at_rest="")

    async def freezing(self, _: Any, *, freezing: bool) -> Replication:
        return await self._changed(freezing=freezing)

    async def rest(self, _: Any, digest: str, cycle: int) -> Replication:
        return await self._changed(at_rest=digest, rest_cycle=cycle)


async def _somebody_acts() -> None:
    """So that nobody reads the VM's disks."""


class Replicated:
    """A VM that a sender sends from north to south."""

    def __init__(self, rig: Rig, hosts: Hosts) -> None:
        self.rig, self.hosts = rig, hosts
        self.runs, self.failed = True, False
        self.quiesce: Any = None
        self.dispatch = Dispatch(rig.processes)
        north = hosts.north
        self.attachments = Attachments(None)  # type: ignore[arg-type]  # a VM without firmware state
        disks = tuple(Disk(id=each, volume=f"{each}.qcow2", size=SIZE) for each in DISKS)
        self.spec = VmSpec(cpus=1, memory=1 << 28, boot=KernelBoot(kernel="x"), disks=disks)
        self.settings = ReplicaEnable(peer="south", rpo_seconds=1.0)
        self.replication = Replication(
            id=str(uuid.uuid4()), vm=str(uuid.uuid4()), settings=self.settings, enabled=datetime.now(UTC)
        )
        self.book = Book(self.replication)
        means = (north.identity, "north", north.peers, self.book)
        self.means = Means(*means, self.dispatch, self.attachments, north.events, None)  # type: ignore[arg-type]
        self.task: asyncio.Task[None] | None = None

    def look(self) -> Vm:
        return Vm(
            id=self.replication.vm,
            name="web",
            spec=self.spec,
            machine=self.rig.machine if self.runs else None,
            runtime=self.rig.folder,
            folder=self.rig.folder,
            started=None,
            rest=Rest(_somebody_acts),
            quiesce=self.quiesce,
            failed=self.failed,
        )

    def begin(self, **settings: Any) -> None:
        changed = self.settings.model_copy(update=settings)
        self.book.record = self.book.record.model_copy(update={"settings": changed})
        self.sender = Sender(self.book.record, self.means, self.look)
        self.task = asyncio.create_task(self.sender.run())

    async def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})

    def explain(self) -> ReplicaExplanation:
        at = time.monotonic()
        status = status_of("web", self.sender, at)
        facts = facts_of(self.sender, self.sender.figures.now(at), at)
        return explain(status, facts, self.sender.progress, Moment(at, datetime.now().astimezone()))

    async def until(self, rule: str) -> ReplicaExplanation:
        """The explanation once it has this as its first cause; empty: none."""
        deadline = time.monotonic() + _SECONDS
        while True:
            found = self.explain()
            if (found.causes[0].rule if found.causes else "") == rule and (rule or found.figures["points"]):
                return found
            assert time.monotonic() < deadline, (rule, found)
            await asyncio.sleep(0.05)

    async def mended(self) -> None:
        """Tries go well again; what was missed before still counts for a while."""
        deadline = time.monotonic() + _SECONDS
        while self.sender.progress.fault is not None:
            assert time.monotonic() < deadline, self.explain()
            await asyncio.sleep(0.05)

    async def peer(self, **change: Any) -> None:
        """What north knows of south is changed."""
        known: ReplicaPeer = await self.hosts.north.peers.get("south")
        await self.hosts.north.peers.remove("south")
        await self.hosts.north.peers.add(ReplicaPeer.model_validate({**known.model_dump(), **change}))

    async def held(self) -> ReplicaExplanation:
        return explain_held(*await self.hosts.south.listener.look("web"))


@contextlib.asynccontextmanager
async def replicated(rig: Rig, folder: Path) -> AsyncIterator[Replicated]:
    """By hosts that are made in `folder`."""
    folder.mkdir()
    made = Replicated(rig, Hosts(folder))
    yield made
    await made.end()
    await made.dispatch.close()
    made.hosts.south.listener.close()


@pytest.fixture
async def web(rig: Rig, tmp_path: Path) -> AsyncIterator[Replicated]:
    async with replicated(rig, tmp_path / "hosts") as made:
        yield made


async def test_where_it_fails_is_told_and_it_goes_on_once_that_is_mended(
    web: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_LATEST", 0.5)
    await web.hosts.pair(ReplicaLimits())
    known = await web.hosts.north.peers.get("south")
    web.begin()
    fine = await web.until("")
    assert (fine.health, fine.causes, fine.attempts) == ("normal", (), 0)
    assert fine.summary.startswith("All is well")
    assert fine.evidence[-1].error_id == ""
    assert (await web.held()).health == "normal"

    for change, rule, side in (
        ({"port": 1}, "replica-nobody-listens", "replica"),
        ({"host": "replica..invalid"}, "replica-host-unknown", "link"),
        ({"fingerprint": "sha256:" + "0" * 64}, "replica-not-that-peer", "replica"),
    ):
        await web.peer(**change)
        web.sender._link.close()
        await web.rig.write("disk0", 1, "0", "64k")
        found = await web.until(rule)
        cause = found.causes[0]
        assert (found.health, cause.side, bool(cause.cure), cause.error_id) == ("critical", side, True, rule)
        assert cause.since is not None and abs((datetime.now(UTC) - cause.since).total_seconds()) < _SECONDS
        assert found.attempts >= 1 and "tries failed since" in found.tried
        assert found.evidence[-1].error_id == rule
        await web.peer(**known.model_dump())
        await web.mended()

    await web.hosts.south.peering.remove("north")
    await web.rig.write("disk0", 2, "0", "64k")
    found = await web.until("replica-not-let-in")
    assert "paired no more" in found.summary
    assert (await web.held()).causes[0].rule == "source-not-paired"


async def test_what_the_receiver_refuses_is_told_on_both_sides(
    web: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_LATEST", 0.5)
    await web.hosts.pair(ReplicaLimits(space=1 << 20))
    await web.rig.write("disk0", 1, "0", "6M")
    web.begin()
    found = await web.until("replica-space-limit")
    assert (found.causes[0].side, found.health) == ("replica", "critical")
    held = await web.held()
    assert ("source-refused", "replica-space-limit") in {(each.rule, each.error_id) for each in held.causes}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
async def test_a_full_disk_of_the_receiver_is_not_taken_for_its_limit(
    web: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_LATEST", 0.5)
    replicas = web.hosts.south.store._root
    await run("mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(replicas))
    try:
        await web.hosts.pair(ReplicaLimits())
        await web.rig.write("disk0", 1, "0", "6M")
        web.begin()
        found = await web.until("no-space")
        assert (found.causes[0].side, found.summary) == ("replica", "The receiving host's disk is full")
        await run("mount", "-o", "remount,size=64M", str(replicas))
        assert (await web.until("")).health == "normal"
    finally:
        await web.end()
        await web.dispatch.close()
        await run("umount", "--lazy", str(replicas))


async def test_more_churn_than_the_limit_lets_pass_is_told_with_what_would_hold(web: Replicated) -> None:
    await web.hosts.pair(ReplicaLimits())
    web.begin(limit="2kB/s")
    await web.until("")
    writing = asyncio.create_task(Guest(web.rig).write_on())
    deadline = time.monotonic() + _SECONDS
    found = web.explain()
    while "falling-behind" not in {each.rule for each in found.causes}:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)
        found = web.explain()
    writing.cancel()
    cause = next(each for each in found.causes if each.rule == "falling-behind")
    assert cause.side == "link"
    assert "The limit of the VM is 1.95 KiB/s now" in cause.cure
    assert "would hold the RPO of 1 s" in cause.cure


async def test_a_machine_that_ended_and_lost_maps_are_told(web: Replicated) -> None:
    await web.hosts.pair(ReplicaLimits())
    web.begin()
    await web.until("")
    web.runs, web.failed = False, True
    await web.rig.restart(kill=True)
    web.sender.wake()
    found = await web.until("machine-failed")
    assert found.causes[0].side == "source"
    web.failed, web.runs = False, True
    web.sender.wake()
    compared = []
    emit = web.hosts.north.events.emit
    web.hosts.north.events.emit = lambda *said: compared.append(said[0]) or emit(*said)  # type: ignore[method-assign,func-returns-value]
    await web.until("")
    deadline = time.monotonic() + _SECONDS
    while "replica.compared" not in compared:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_clock_that_was_set_back_is_told(web: Replicated, monkeypatch: pytest.MonkeyPatch) -> None:
    await web.hosts.pair(ReplicaLimits())
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 3600)
        web.begin()
        await web.until("")
        await web.end()
    assert "points-in-the-future" in {each.rule for each in (await web.held()).causes}
    web.begin()
    found = await web.until("clock-behind")
    assert found.causes[0].side == "source"


async def test_firmware_that_changes_is_told(web: Replicated, monkeypatch: pytest.MonkeyPatch) -> None:
    await web.hosts.pair(ReplicaLimits())

    async def changing(*_: Any) -> None:
        raise FirmwareChanging("the VM's firmware state was written", cure="The next one tries again.")

    monkeypatch.setattr(web.attachments, "require_same", changing)
    web.begin()
    found = await web.until("replica-firmware-changing")
    assert (found.health, found.causes[0].side) == ("warning", "source")
