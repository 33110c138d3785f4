"""A failover to this host: the VM is received no more and made from a point, by an operation that is undone
as a whole. Whose turn it is changes first, durably, so that nothing that happens in the midst of it lets the
VM be received and run at once.

    replica.take-over   receive no more ─▶ make the VM ─▶ failed-over, or primary if final ─▶ addresses
    replica.take-back   delete the VM ─▶ a replica again
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware, now
from holdfast.catalog.tables import VmRow
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.replication.attachments import SentVm
from holdfast.replication.guest_addresses import AddressSet
from holdfast.replication.replica_records import HeldVm, ReplicaBook
from holdfast.replication.revived_spec import read_sent
from holdfast.replication.store.errors import PointLost, PointNotFound
from holdfast.replication.store.record import Point
from holdfast.replication.store.replica import ReplicaStore
from holdfast.replication.turns import NotItsTurn, TurnBook, TurnRecord, moved
from holdfast.replication.way_back import back
from holdfast.spec.errors import HoldfastError, RemoteError
from holdfast.spec.operation import Operation
from holdfast.spec.turn import Failover, Turn
from holdfast.vm.import_admission import VmIdTaken
from holdfast.vm.records import VmNotFound, VmRecord, VmRecords
from holdfast.vm.registry import VmRegistry

TAKE_OVER, TAKE_BACK = "replica.take-over", "replica.take-back"

Halt = Callable[[str], Awaitable[None]]
"""Ends the link about a VM (its id), which is not let in again."""
Make = Callable[[HeldVm, int, str, bool, str], Awaitable[None]]
"""Makes the VM itself of a held one: point, name, whether to start it, who asks. Undone where it fails."""


Address = Callable[[str, SentVm], Awaitable[Sequence[AddressSet]]]
"""Gives the guest of a VM (its id) the addresses that it has on this host. Does not fail."""


Allow = Callable[[HeldVm], Awaitable[None]]
"""Whether the VM of a replica may run here, as far as hosts know that it is sent on to. Raises why not."""


class Vms(Protocol):
    """What is there of the VMs of this host."""

    async def record(self, vm: str) -> VmRecord | None: ...
    async def delete(self, vm: str) -> None:
        """Whether it runs or not; nothing happens where it is not there."""
        ...

    async def settled(self, record: VmRecord) -> None:
        """Return once the operation on it that is under way has ended."""
        ...


class LocalVms:
    def __init__(self, records: VmRecords, registry: VmRegistry, operations: Operations) -> None:
        self._records = records
        self._registry = registry
        self._operations = operations

    async def record(self, vm: str) -> VmRecord | None:
        with contextlib.suppress(VmNotFound):
            return await self._records.get(vm)
        return None

    async def settled(self, record: VmRecord) -> None:
        if record.operation is not None:
            await self._operations.wait(record.operation)

    async def delete(self, vm: str) -> None:
        record = await self.record(vm)
        if record is None:
            return
        await self.settled(record)
        with contextlib.suppress(VmNotFound):  # that operation may have been one that makes it, undone
            begun = await self._registry.delete(vm, force=True, actor="replication")
            ended = await self._operations.wait(begun.id)
            if ended.error:
                raise RemoteError(ended.error)


@dataclass(frozen=True)
class Means:
    turns: TurnBook
    held: ReplicaBook
    store: ReplicaStore
    vms: Vms
    halt: Halt
    make: Make
    address: Address
    allow: Allow


class Takeovers:
    """What people, and the desk, ask for."""

    def __init__(self, means: Means, operations: Operations) -> None:
        self._means = means
        self._operations = operations

    async def failover(self, name: str, request: Failover, actor: str) -> Operation:
        """Run a VM here from a point of its replica; another point may be chosen until that is committed.

        Raises NoSuchReplica, PointNotFound, PointLost, ReplicaSpecDamaged, NotItsTurn, VmIdTaken.
        """
        held = await self._means.held.get(name)
        point = await asyncio.to_thread(self._chosen, held, request)
        return await self.begin(held, point, None, start=True, final=request.commit, actor=actor)

    async def begin(
        self, held: HeldVm, point: Point, term: int | None, *, start: bool, final: bool, actor: str
    ) -> Operation:
        """`term`: of the failover, None: the next.

        Raises ReplicaSpecDamaged, NotItsTurn, VmIdTaken, ReplicaFailedOver.
        """
        means = self._means
        await means.allow(held)
        replica = means.store.replica(held.name)
        attached = await asyncio.to_thread(replica.attachments, point.number)
        sent = read_sent(attached.get("spec"), held.vm)
        found: list[TurnRecord | None] = []

        def decide(session: Session, before: TurnRecord | None) -> TurnRecord:
            ours = before or first(held)
            if ours.turn is Turn.FAILED_OVER and term is None:
                return moved(ours, Turn.TAKING_OVER)
            if ours.turn is not Turn.REPLICA:
                raise _wrong(held.name, ours)
            if session.get(VmRow, held.vm) is not None:
                raise VmIdTaken(
                    f"this host has a VM with the id {held.vm}",
                    value=held.vm,
                    cure="It is that VM, or one made of it: delete what is no more needed.",
                )
            wanted = term or max(ours.term, held.term) + 1
            if wanted <= ours.term:
                raise _wrong(held.name, ours)
            change = {
                "term": wanted,
                "peer": held.source,
                "replica": held.name,
                "error": "",
                "back": back(held, sent),
            }
            return moved(ours, Turn.TAKING_OVER, **change)

        def admit(session: Session, _: str) -> None:
            found.append(means.turns.decided(session, held.vm, decide))

        params = {
            "vm": held.vm,
            "replica": held.name,
            "point": point.number,
            "taken": point.taken.isoformat(),
            "name": sent.name,
            "start": start,
            "final": final,
            "sent": sent.model_dump(mode="json"),
        }
        operation = await self._operations.submit(TAKE_OVER, sent.name, params, actor, admit)
        means.turns.learn(held.vm, found[-1])
        return operation

    async def commit(self, name: str) -> TurnRecord:
        """A failover is final: other points are dropped, and it is replicated back.

        Raises NoSuchReplica, NotItsTurn.
        """
        held = await self._means.held.get(name)
        return await self._means.turns.turn(held.vm, Turn.PRIMARY, {Turn.FAILED_OVER})

    async def cancel(self, name: str, actor: str) -> Operation:
        """A failover is taken back: its VM is deleted, and received again.

        Raises NoSuchReplica, NotItsTurn.
        """
        means, held = self._means, await self._means.held.get(name)

        def admit(session: Session, _: str) -> None:
            def decide(_: Session, before: TurnRecord | None) -> None:
                if before is None or before.turn is not Turn.FAILED_OVER:
                    raise _wrong(name, before or first(held))

            means.turns.decided(session, held.vm, decide)

        params = {"vm": held.vm, "replica": held.name}
        return await self._operations.submit(TAKE_BACK, held.name, params, actor, admit)

    def _chosen(self, held: HeldVm, request: Failover) -> Point:
        points = self._means.store.replica(held.name).points()
        if request.point is not None:
            points = tuple(each for each in points if each.number == request.point)
        elif request.time is not None:
            at = _zoned(request.time)
            points = tuple(each for each in points if each.taken <= at and not each.lost)
        else:
            points = tuple(each for each in points if not each.lost)
        if not points:
            raise PointNotFound(
                f"replica {held.name!r} has no such point that can be used",
                value=request.point,
                cure=f"See `holdfast replica points {held.name}`.",
            )
        if points[-1].lost:
            raise PointLost(
                f"point {points[-1].number} is lost: {points[-1].lost}",
                value=points[-1].number,
                cure="Choose another one.",
            )
        return points[-1]


def first(held: HeldVm) -> TurnRecord:
    """Of a replica that was never anything else."""
    return TurnRecord(
        vm=held.vm,
        name=held.name,
        turn=Turn.REPLICA,
        term=held.term,
        peer=held.source,
        since=aware(now()),
        replica=held.name,
    )


def procedures(means: Means) -> list[Procedure]:
    def made(job: Job) -> dict[str, Any]:
        told = {each: job.params[each] for each in ("point", "taken")}
        return {"vm": job.params["name"], **told, "addresses": job.notes.get("addresses", [])}

    phases = (_ReceiveNoMore(means), _MakeVm(means), _ItsTurn(means), _SetAddresses(means))
    return [
        Procedure(TAKE_OVER, phases, made),
        Procedure(TAKE_BACK, (_RemoveVm(means),), lambda job: {"replica": job.params["replica"]}),
    ]


class _OfTurn:
    title = ""
    weight = 1.0

    def __init__(self, means: Means) -> None:
        self._means = means

    def _under_way(self, job: Job) -> bool:
        """What was not decided yet can be undone."""
        known = self._means.turns.known(job.params["vm"])
        return known is not None and known.turn is Turn.TAKING_OVER

    async def undo(self, job: Job) -> None:
        """Nothing was made."""


class _ReceiveNoMore(_OfTurn):
    title = "receive no more"
    weight = 0.2

    async def do(self, job: Job) -> None:
        await self._means.halt(job.params["vm"])
        if "cleared" not in job.notes:
            # What was made of another point, chosen before.
            await self._means.vms.delete(job.params["vm"])
            job.notes["cleared"] = True
            await job.keep()

    async def undo(self, job: Job) -> None:
        if self._under_way(job):
            error = job.notes.get("error", "it was cancelled")
            await self._means.turns.turn(job.params["vm"], Turn.REPLICA, {Turn.TAKING_OVER}, error=error)


class _MakeVm(_OfTurn):
    title = "make the VM from the point"
    weight = 3.0

    async def do(self, job: Job) -> None:
        vms, params = self._means.vms, job.params
        record = await vms.record(params["vm"])
        if record is not None:
            # A daemon that was killed had begun it: that goes on, or is undone, by itself.
            await vms.settled(record)
            record = await vms.record(params["vm"])
        if record is not None:
            return
        try:
            held = await self._means.held.get(params["replica"])
            await self._means.make(held, params["point"], params["name"], params["start"], job.actor)
        except HoldfastError as error:
            job.notes["error"] = error.message[:1000]
            await job.keep()
            raise

    async def undo(self, job: Job) -> None:
        if self._under_way(job):
            await self._means.vms.delete(job.params["vm"])


class _ItsTurn(_OfTurn):
    title = "record that it runs here"
    weight = 0.1

    async def do(self, job: Job) -> None:
        to = Turn.PRIMARY if job.params["final"] else Turn.FAILED_OVER
        await self._means.turns.turn(job.params["vm"], to, {Turn.TAKING_OVER})


class _SetAddresses(_OfTurn):
    title = "give the guest its addresses"
    weight = 0.2

    async def do(self, job: Job) -> None:
        if not job.params["start"]:
            return
        sent = SentVm.model_validate(job.params["sent"])
        found = await self._means.address(job.params["vm"], sent)
        job.notes["addresses"] = [each.model_dump(mode="json") for each in found]


class _RemoveVm(_OfTurn):
    title = "delete the VM"

    async def do(self, job: Job) -> None:
        await self._means.vms.delete(job.params["vm"])
        await self._means.turns.turn(job.params["vm"], Turn.REPLICA, {Turn.FAILED_OVER})


def _zoned(time: datetime) -> datetime:
    return time if time.tzinfo else aware(time)


def _wrong(name: str, ours: TurnRecord) -> NotItsTurn:
    return NotItsTurn(
        f"VM {name!r} is {ours.turn} here (term {ours.term})",
        value=str(ours.turn),
        cure="See `holdfast replica turns`.",
    )
