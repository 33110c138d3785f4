"""A planned failover: the VM of this host goes to the host that holds its replica, and nothing is lost.

    ask over there ─▶ fence here ─▶ stop the guest ─▶ all of it is held ─▶ TAKE_OVER ─▶ fenced for good

The VM is fenced here before it is stopped, so that it can start in one place at most whatever is killed.
Once TAKE_OVER may have been sent, only the receiver's own answer says whether this is done or undone: RELEASE
makes one that is still on its way void.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from holdfast.catalog.clock import aware, now
from holdfast.operations.procedure import Job, Procedure
from holdfast.replication.asking import TurnAsker
from holdfast.replication.fencing import VmFenced
from holdfast.replication.pairing import PeerBook
from holdfast.replication.replication_records import (
    Replication,
    ReplicationBook,
)
from holdfast.replication.resting import digest_of
from holdfast.replication.turns import FIRST_TERM, TurnBook, TurnRecord, moved
from holdfast.replication.wire import Prepare, Release, TakeOver, TurnIs
from holdfast.spec.errors import Conflict, Failed, HoldfastError, TimedOut
from holdfast.spec.operation import Operation
from holdfast.spec.replica import ReplicaPeer
from holdfast.spec.turn import RUNS, PlannedFailover, Turn
from holdfast.spec.vm import VmState
from holdfast.vm.admission import Verb
from holdfast.vm.lifecycle import StopGuest
from holdfast.vm.owner import VmOwner
from holdfast.vm.registry import VmRegistry

log = structlog.get_logger(__name__)

HAND_OVER = "replica.hand-over"
_WHOLE_SECONDS = 60.0
"""That the last cycle has to arrive once the VM is off."""
_TICK = 0.5
_ANSWER_SECONDS = 10.0
_RUNNING = (VmState.RUNNING, VmState.PAUSED)


class ReplicaNotCurrent(Conflict):
    """A planned failover would lose something, or could not be."""

    id = "replica-not-current"


class LastCycleMissing(TimedOut):
    """The VM is off, and not all of it is over there."""

    id = "replica-last-cycle-missing"


class TakeOverFailed(Failed):
    """The other host could not run the VM."""

    id = "replica-take-over-failed"


Trouble = Callable[[str], str]
"""Of a replication's id: why it is not under way; empty: it is."""


@dataclass(frozen=True)
class Means:
    turns: TurnBook
    peers: PeerBook
    book: ReplicationBook
    asker: TurnAsker
    find: Callable[[str], Awaitable[VmOwner]]
    trouble: Trouble


class Handovers:
    def __init__(self, means: Means, registry: VmRegistry) -> None:
        self._means = means
        self._registry = registry

    async def failover(self, name: str, request: PlannedFailover, actor: str) -> Operation:
        """Hand a VM over to the host that holds its replica.

        Raises:
            VmNotFound, NotReplicated, SeveralPeers, VmFenced, VmBusy, VmInWrongState
            ReplicaNotCurrent: something stands in the way of it on this side.
            PeerRefused, LinkLost: something does over there.
        """
        owner = await self._registry.named(name)
        record, means = owner.record, self._means
        sent = await means.book.of(record.id, request.peer)
        known = means.turns.known(record.id)
        if known is not None and known.turn not in RUNS:
            raise VmFenced(f"VM {record.name!r} is {known.turn} here", value=str(known.turn))
        trouble = "it has never been there whole" if not sent.initial else means.trouble(sent.id)
        if trouble or record.spec.require_attested_host:
            raise ReplicaNotCurrent(
                f"VM {record.name!r} cannot fail over: {trouble or 'it runs on attested hosts only'}",
                value=record.name,
                cure=f"See `holdfast replica status {record.name}`.",
            )
        term = means.turns.term(record.id) + 1
        peer = await means.peers.get(sent.peer)
        answer = await means.asker.ask(peer, Prepare(vm=record.id, term=term, memory=record.spec.memory))
        running = record.state in _RUNNING
        params = {
            "peer": peer.name,
            "term": max(term, answer.term + 1),
            "running": running,
            "timeout_seconds": request.timeout_seconds,
        }
        return await self._registry.begin(
            HAND_OVER, owner, Verb.STOP if running else Verb.EXPORT, params, actor
        )


def procedures(means: Means) -> list[Procedure]:
    def result(job: Job) -> dict[str, Any]:
        return {"vm": job.subject, "peer": job.params["peer"], "term": job.params["term"]}

    phases = (_Fence(means), StopGuest(means.find), _AllIsHeld(means), _TakenOver(means))
    return [Procedure(HAND_OVER, phases, result)]


class _OfVm:
    title = ""
    weight = 1.0

    def __init__(self, means: Means) -> None:
        self._means = means

    async def _peer(self, job: Job) -> ReplicaPeer:
        return await self._means.peers.get(job.params["peer"])

    async def _sent(self, job: Job) -> Replication:
        return await self._means.book.of(job.params["vm"], job.params["peer"])

    async def undo(self, job: Job) -> None:
        """The fence sees to it."""


class _Fence(_OfVm):
    title = "fence it here"
    weight = 0.1

    async def do(self, job: Job) -> None:
        vm, peer = job.params["vm"], await self._peer(job)

        def decide(_: object, before: TurnRecord | None) -> TurnRecord:
            ours = before or TurnRecord(
                vm=vm,
                name=job.subject,
                turn=Turn.PRIMARY,
                term=FIRST_TERM,
                peer=peer.fingerprint,
                since=aware(now()),
            )
            if ours.turn not in (Turn.PRIMARY, Turn.HANDING_OVER):
                raise VmFenced(f"VM {job.subject!r} is {ours.turn} here", value=str(ours.turn))
            term = job.params["term"]
            return moved(ours, Turn.HANDING_OVER, term=term, peer=peer.fingerprint)

        await self._means.turns.decide(vm, decide)

    async def undo(self, job: Job) -> None:
        """It is this host's again, unless the other one has it: that is asked until there is an answer."""
        known = self._means.turns.known(job.params["vm"])
        if known is None or known.turn is not Turn.HANDING_OVER:
            return
        answer = await self._released(job) if "sent" in job.notes else None
        if answer is not None and answer.turn in RUNS and answer.term >= known.term:
            await fenced(self._means.turns, job.params["vm"], answer.term)
            return
        term = max(known.term, answer.term if answer else 0)
        await self._means.turns.turn(job.params["vm"], Turn.PRIMARY, {Turn.HANDING_OVER}, term=term)
        if job.params["running"]:
            owner = await self._means.find(job.params["vm"])
            await owner.request(lambda: owner.start(job.id, datetime.now(UTC)))

    async def _released(self, job: Job) -> TurnIs:
        asked = Release(vm=job.params["vm"], term=job.params["term"])
        while True:
            try:
                answer = await self._means.asker.ask(await self._peer(job), asked, _ANSWER_SECONDS)
            except (HoldfastError, OSError) as error:
                job.progress(0.0, f"asking the other host whether it runs the VM: {error}")
                await asyncio.sleep(_TICK)
                continue
            if answer.turn is not Turn.TAKING_OVER:
                return answer
            job.progress(0.0, "the other host is taking the VM over")
            await asyncio.sleep(_TICK)


class _AllIsHeld(_OfVm):
    title = "see that all of it is held"

    async def do(self, job: Job) -> None:
        vm = job.params["vm"]
        owner = await self._means.find(vm)
        owner.rest.under = job.id  # what the end of the machine left unsent is read from its disks
        try:
            job.notes["cycle"] = await self._arrived(job, owner)
        finally:
            owner.rest.under = None

    async def _arrived(self, job: Job, owner: VmOwner) -> int:
        until = time.monotonic() + _WHOLE_SECONDS
        while not (cycle := held_cycle(await self._sent(job), owner)):
            left = until - time.monotonic()
            if left <= 0:
                raise LastCycleMissing(
                    f"what VM {job.subject!r} changed last did not arrive within {_WHOLE_SECONDS:g} seconds",
                    value=job.subject,
                    cure=f"See `holdfast replica status {job.subject}`; fail over again once it is current.",
                )
            job.progress(1 - left / _WHOLE_SECONDS, "what changed last is on its way")
            await asyncio.sleep(_TICK)
        return cycle


def held_cycle(sent: Replication, owner: VmOwner) -> int:
    """The cycle by which all of a VM that is off is over there; 0: it is not."""
    record = owner.record
    off = owner.machine is None and record.state in (VmState.OFF, VmState.FAILED)
    digest = digest_of(record.spec, record.started, sent.settings.exclude)
    return sent.rest_cycle if off and sent.at_rest == digest else 0


class _TakenOver(_OfVm):
    title = "start it over there"
    weight = 3.0

    async def do(self, job: Job) -> None:
        peer, term = await self._peer(job), job.params["term"]
        asked = TakeOver(
            vm=job.params["vm"], term=term, cycle=job.notes["cycle"], start=job.params["running"]
        )
        job.notes["sent"] = True
        await job.keep()
        while True:
            try:
                answer = await self._means.asker.ask(peer, asked, _ANSWER_SECONDS)
            except (OSError, HoldfastError) as error:
                # Whether it was heard nobody knows: the same is said again until there is an answer.
                if error_id(error) == "replica-peer-refused":
                    raise
                job.progress(0.1, f"the other host does not answer: {error}")
                await asyncio.sleep(_TICK)
                continue
            if answer.turn is Turn.TAKING_OVER and answer.term == term:
                job.progress(0.5, "the other host is making the VM")
                await asyncio.sleep(_TICK)
                continue
            if answer.turn in RUNS and answer.term >= term:
                break
            raise TakeOverFailed(
                f"the other host does not run the VM: {answer.error or f'it is {answer.turn} there'}",
                value=str(answer.turn),
                cure="See its operations (`holdfast operation list` over there).",
            )
        await fenced(self._means.turns, job.params["vm"], answer.term)


async def fenced(turns: TurnBook, vm: str, term: int) -> None:
    await turns.turn(vm, Turn.FENCED, {Turn.HANDING_OVER}, term=term, committed=True)


def error_id(error: Exception) -> str:
    return error.id if isinstance(error, HoldfastError) else ""
