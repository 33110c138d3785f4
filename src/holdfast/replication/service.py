"""Replications of this host's VMs: enabled, disabled, shown; a sender for each. Owner of the senders."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from holdfast.catalog.clock import aware, now
from holdfast.host.folders import StateFolder
from holdfast.machine.running import RunningMachine
from holdfast.replication.explaining import Moment, explain
from holdfast.replication.failover_network import require_nics
from holdfast.replication.history import History, Kept
from holdfast.replication.recording import Measured, Recording, told
from holdfast.replication.replication_records import NotReplicated, Replication
from holdfast.replication.schedule import initial_from
from holdfast.replication.sending import Means, NothingToReplicate, Sender, Vm
from holdfast.replication.statuses import facts_of, status_of
from holdfast.replication.way_back import require_usable
from holdfast.spec.errors import HoldfastError, InvalidInput, NotFound, Unsupported
from holdfast.spec.ids import new_id
from holdfast.spec.replica import PeerRole, ReplicaChange, ReplicaEnable, ReplicaStatus
from holdfast.spec.replica_figures import ReplicaExplanation, ReplicaHistory
from holdfast.spec.vm import VmState
from holdfast.vm.owner import VmOwner
from holdfast.vm.quiesce import Quiesce
from holdfast.vm.registry import VmRegistry

log = structlog.get_logger(__name__)

_RUNS = (VmState.RUNNING, VmState.PAUSED, VmState.STOPPING)


class PeerCannotReceive(InvalidInput):
    id = "replica-peer-cannot-receive"


class NoSuchDisk(NotFound):
    id = "replica-no-such-disk"


class NeedsAttestedHost(Unsupported):
    id = "replica-needs-attested-host"


@dataclass(frozen=True)
class _Sent:
    sender: Sender
    task: asyncio.Task[None]


class Replications:
    def __init__(self, means: Means, registry: VmRegistry, state: StateFolder, history: History) -> None:
        self._means = means
        self._registry = registry
        self._state = state
        self._sent: dict[str, _Sent] = {}
        """By the replication's id."""
        self._recording = Recording(history, self._measured)
        self._changing = asyncio.Lock()

    async def keep(self) -> None:
        """Send what is enabled, and tell senders when a VM starts or ends; for ever."""
        last = await self._means.events.last_id()
        for replication in await self._means.book.all():
            await self._begin(replication)
        async for event in self._means.events.follow(last):
            if event.kind == "vm.deleted":
                await self._end_orphans()
            elif event.kind.startswith("vm.") or event.kind == "replica.turn":
                for each in self._sent.values():
                    each.sender.wake()

    async def enable(self, name: str, request: ReplicaEnable) -> ReplicaStatus:
        """Replicate a VM from now on.

        Raises:
            VmNotFound, PeerNotFound, PeerCannotReceive, BadRetention, BadLimit, NoSuchDisk
            NicNotFound, NothingToReplicate, NeedsAttestedHost, AlreadyReplicated
        """
        owner = await self._registry.named(name)
        peer = await self._means.peers.get(request.peer)
        if peer.role is not PeerRole.RECEIVER:
            raise PeerCannotReceive(
                f"{peer.name!r} sends replicas to this host; nothing can be sent to it",
                value=peer.name,
                cure="Pair the other way round: `holdfast replica accept` there, `replica peer add` here.",
            )
        _require_usable(owner, request)
        replication = Replication(
            id=new_id(),
            vm=owner.record.id,
            settings=request.model_copy(update={"peer": peer.name}),
            enabled=aware(now()),
        )
        async with self._changing:
            await self._means.book.add(replication)
            await self._begin(replication)
        return await self.show(name, peer.name)

    async def disable(self, name: str, peer: str | None = None) -> None:
        """Replicate a VM no more, to a peer or to its only one; what is held over there stays.

        Raises VmNotFound, NotReplicated, SeveralPeers.
        """
        owner = await self._registry.named(name)
        async with self._changing:
            replication = await self._means.book.of(owner.record.id, peer)
            await self._means.book.remove(replication)
            await self._end(replication.id, forget=True)

    async def set(self, name: str, request: ReplicaChange, peer: str | None = None) -> ReplicaStatus:
        """Change settings, from the next cycle on; a limit and a priority hold at once.

        Raises:
            VmNotFound, NotReplicated, SeveralPeers
            BadRetention, BadLimit, BadSchedule, NoSuchDisk, NicNotFound, NothingToReplicate
        """
        owner = await self._registry.named(name)
        async with self._changing:
            replication = await self._means.book.of(owner.record.id, peer)
            given = {key: getattr(request, key) for key in request.model_fields_set}
            wanted = {key: value for key, value in given.items() if value is not None}
            if request.failover is not None:
                wanted["failover"] = replication.settings.failover.changed_to(request.failover)
            settings = replication.settings.model_copy(update=wanted)
            _require_usable(owner, settings)
            replication = await self._means.book.set(replication, settings)
            self._sent[replication.id].sender.changed(replication)
        return await self.show(name, replication.peer)

    async def pause(self, name: str, peer: str | None = None, *, paused: bool) -> ReplicaStatus:
        """Send nothing until it is resumed, or resume; what changes meanwhile stays known.

        Raises VmNotFound, NotReplicated, SeveralPeers.
        """
        owner = await self._registry.named(name)
        async with self._changing:
            replication = await self._means.book.of(owner.record.id, peer)
            if replication.paused is not paused:
                replication = await self._means.book.pause(replication, paused=paused)
                await self._paused(self._sent[replication.id], replication)
        return await self.show(name, replication.peer)

    async def _paused(self, sent: _Sent, replication: Replication) -> None:
        """A cycle under way is given up."""
        sent.task.cancel()
        await asyncio.wait({sent.task})
        sent.sender.changed(replication)
        self._sent[replication.id] = _Sent(sent.sender, self._task(sent.sender))

    async def show(self, name: str, peer: str | None = None) -> ReplicaStatus:
        """Of a VM to a peer, or to its only one. Raises VmNotFound, NotReplicated, SeveralPeers."""
        owner = await self._registry.named(name)
        return await self._status(owner.record.name, await self._means.book.of(owner.record.id, peer))

    async def list(self, vm: str | None = None) -> tuple[ReplicaStatus, ...]:
        """All replications, or those of one VM, by VM and peer. Raises VmNotFound, NotReplicated."""
        one = None if vm is None else await self._registry.named(vm)
        found = []
        for each in await self._means.book.all(one.record.id if one else None):
            owner = await self._registry.owner(each.vm)
            found.append(await self._status(owner.record.name, each))
        if one is not None and not found:
            await self._means.book.of(one.record.id)  # says so
        return tuple(sorted(found, key=lambda each: (each.vm.lower(), each.peer.lower())))

    async def explain(self, name: str) -> tuple[ReplicaExplanation, ...]:
        """Why its replications are as they are, one for each peer. Raises VmNotFound, NotReplicated."""
        moment = Moment(time.monotonic(), datetime.now().astimezone())
        owner, found = await self._registry.named(name), []
        for status in await self.list(name):
            replication = await self._means.book.of(owner.record.id, status.peer)
            sender = self._sent[replication.id].sender
            figures = sender.figures.now(moment.monotonic)
            facts = facts_of(sender, figures, moment.monotonic, status.moved_to)
            found.append(explain(status, facts, sender.progress, moment))
        return tuple(found)

    async def history(self, name: str, since: timedelta, peer: str | None = None) -> ReplicaHistory:
        """What happened lately. Raises VmNotFound, NotReplicated, SeveralPeers, BadHistoryTime."""
        status = await self.show(name, peer)
        owner = await self._registry.named(name)
        replication = await self._means.book.of(owner.record.id, peer)
        kept = await self._recording.read(replication.id, since)
        return told(status.vm, status.peer, kept, last_sync=status.last_sync, last_test=status.last_test)

    async def profiles(
        self, name: str | None, since: timedelta
    ) -> tuple[tuple[ReplicaStatus, tuple[Kept, ...]], ...]:
        """What was measured of one VM, or of all. Raises VmNotFound, NotReplicated, BadHistoryTime."""
        found = []
        for status in await self.list(name):
            owner = await self._registry.named(status.vm)
            replication = await self._means.book.of(owner.record.id, status.peer)
            found.append((status, await self._recording.read(replication.id, since)))
        return tuple(found)

    async def reset_history(self, name: str, peer: str | None = None) -> None:
        """Forget what happened, and measure anew from now on.

        Raises VmNotFound, NotReplicated, SeveralPeers.
        """
        owner = await self._registry.named(name)
        replication = await self._means.book.of(owner.record.id, peer)
        await self._recording.reset(replication.id)
        if sent := self._sent.get(replication.id):
            sent.sender.measure_anew()

    async def keep_history(self) -> None:
        """Write down each minute; for ever."""
        await self._recording.keep()

    def _measured(self) -> Iterator[Measured]:
        for each in self._sent.values():
            yield Measured(each.sender.replication.id, each.sender.figures)

    async def before_end(self, vm: str, machine: RunningMachine) -> None:
        """As `endings.BeforeEnd`."""
        sent = [(id_, each) for id_, each in self._sent.items() if each.sender.replication.vm == vm]
        done = await asyncio.gather(*(self._last(*each, machine) for each in sent), return_exceptions=True)
        for each in done:
            if isinstance(each, BaseException):
                raise each

    async def _last(self, id_: str, sent: _Sent, machine: RunningMachine) -> None:
        sent.task.cancel()
        await asyncio.wait({sent.task})
        try:
            await sent.sender.last(machine)
        finally:
            if self._sent.get(id_) is sent:  # it was not disabled meanwhile
                self._sent[id_] = _Sent(sent.sender, self._task(sent.sender))

    async def send_no_more(self, vm: str) -> None:
        """End all replication of a VM of this host, by its id; nothing happens where there is none."""
        async with self._changing:
            for each in await self._means.book.all(vm):
                await self._means.book.remove(each)
                await self._end(each.id, forget=False)

    def trouble(self, id_: str) -> str:
        """Why a replication is not under way; empty: it is, as far as is known."""
        sent = self._sent.get(id_)
        return sent.sender.progress.error if sent else "it is not replicated"

    def sends(self, id_: str) -> bool:
        """Whether a replication's link is there."""
        sent = self._sent.get(id_)
        return sent is not None and sent.sender.progress.connected

    def wake(self, vm: str) -> None:
        """A receiver of a VM, by its id, is ready for it now."""
        for each in self._sent.values():
            if each.sender.replication.vm == vm:
                each.sender.wake()

    async def close(self) -> None:
        for each in list(self._sent):
            await self._end(each, forget=False)
        await self._means.dispatch.close()
        await self._recording.close()

    async def _begin(self, replication: Replication) -> None:
        owner = await self._registry.owner(replication.vm)
        sender = Sender(replication, self._means, lambda: self._look(owner))
        await self._recording.recall(replication.id, sender.figures)
        self._sent[replication.id] = _Sent(sender, self._task(sender))

    def _task(self, sender: Sender) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(sender), name=f"replica of {sender.replication.vm}")

    @staticmethod
    async def _run(sender: Sender) -> None:
        while True:
            try:
                await sender.run()
            except Exception:
                log.exception("a replication failed by a fault of ours", vm=sender.replication.vm)
                await asyncio.sleep(30.0)  # nothing tells when that is mended

    async def _end(self, id_: str, *, forget: bool) -> None:
        sent = self._sent.pop(id_, None)
        if sent is None:
            return
        sent.task.cancel()
        await asyncio.wait({sent.task})
        if forget:
            try:
                await sent.sender.forget()
            except HoldfastError as error:
                # A later replication does not take them for its own: the receiver has it compare.
                log.warning("maps of changes stay in a machine", replication=id_, error=error.message)

    async def _end_orphans(self) -> None:
        left = {each.id for each in await self._means.book.all()}
        for each in set(self._sent) - left:
            await self._end(each, forget=False)

    def _look(self, owner: VmOwner) -> Vm:
        record = owner.record
        machine = owner.machine if record.state in _RUNS else None
        return Vm(
            id=record.id,
            name=record.name,
            spec=record.running_spec if machine is not None and record.running_spec else record.spec,
            machine=machine,
            runtime=self._state.vm_runtime(record.id),
            folder=self._state.vm(record.name),
            started=record.started,
            rest=owner.rest,
            quiesce=Quiesce(owner),
            failed=record.state is VmState.FAILED,
        )

    async def _moved_to(self, sender: Sender) -> str:
        if not sender.fenced or self._means.turns is None:
            return ""
        known = self._means.turns.known(sender.replication.vm)
        names = {each.fingerprint: each.name for each in reversed(await self._means.peers.peers())}
        return names.get(known.peer, "") if known else ""

    async def _status(self, name: str, replication: Replication) -> ReplicaStatus:
        sent = self._sent.get(replication.id)
        if sent is None:
            raise NotReplicated(f"VM {name!r} is not replicated", value=name)
        moved_to = await self._moved_to(sent.sender)
        status = status_of(name, sent.sender, time.monotonic(), moved_to)
        limits = self._means.dispatch.limits
        shared = {"host_limit": limits.host, "peer_limit": limits.peers.get(sent.sender.fingerprint, "none")}
        return status.model_copy(update=shared)


def _require_usable(owner: VmOwner, settings: ReplicaEnable) -> None:
    require_usable(settings)
    initial_from(settings.initial, datetime.now())
    _require_disks(owner, settings)
    require_nics(owner.record.spec, settings.failover)


def _require_disks(owner: VmOwner, request: ReplicaEnable) -> None:
    record = owner.record
    disks = {each.id for each in record.spec.disks}
    if unknown := [each for each in request.exclude if each not in disks]:
        raise NoSuchDisk(
            f"VM {record.name!r} has no disk {unknown[0]!r}",
            value=unknown[0],
            cure=f"Its disks are {', '.join(sorted(disks)) or 'none'}.",
        )
    if not disks - set(request.exclude):
        raise NothingToReplicate(
            f"no disk of VM {record.name!r} is left to replicate", value=record.name, cure="Exclude fewer."
        )
    if record.spec.require_attested_host:
        raise NeedsAttestedHost(
            f"VM {record.name!r} runs on attested hosts only, and it is not known of replicas' hosts",
            value=record.name,
            cure="Take that demand back (`holdfast vm set`), or do not replicate it.",
        )
