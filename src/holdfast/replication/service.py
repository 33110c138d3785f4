"""What this host sends: enabled, disabled, shown; a sender for each. Owner of the senders.

VMs of this host, and replicas that it holds and sends on, which `extending` begins. A name is that of a VM
here, or else, and where that is not sent, that of such a replica.
"""

import asyncio
import builtins
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from holdfast.catalog.clock import aware, now
from holdfast.host.folders import StateFolder
from holdfast.machine.running import RunningMachine
from holdfast.replication.attachments import SentVm
from holdfast.replication.explaining import Moment, explain
from holdfast.replication.failover_network import require_nics
from holdfast.replication.history import History, Kept
from holdfast.replication.recording import Measured, Recording, told
from holdfast.replication.relaying import HeldMeans, Relay
from holdfast.replication.replica_records import NoSuchReplica
from holdfast.replication.replicating import Means, Replicator
from holdfast.replication.replication_records import NotReplicated, Replication, ReplicationBook
from holdfast.replication.revival import chosen
from holdfast.replication.revived_spec import read_sent
from holdfast.replication.schedule import initial_from
from holdfast.replication.sending import NothingToReplicate, Sender, Vm
from holdfast.replication.statuses import facts_of, status_of
from holdfast.replication.way_back import require_usable
from holdfast.spec.errors import HoldfastError, InvalidInput, NotFound, Unsupported
from holdfast.spec.ids import new_id
from holdfast.spec.replica import PeerRole, ReplicaChange, ReplicaEnable, ReplicaPeer, ReplicaStatus
from holdfast.spec.replica_figures import ReplicaExplanation, ReplicaHistory
from holdfast.spec.vm import VmSpec, VmState
from holdfast.vm.owner import VmOwner
from holdfast.vm.quiesce import Quiesce
from holdfast.vm.records import VmNotFound
from holdfast.vm.registry import VmRegistry

log = structlog.get_logger(__name__)

_RUNS = (VmState.RUNNING, VmState.PAUSED, VmState.STOPPING)


class PeerCannotReceive(InvalidInput):
    id = "replica-peer-cannot-receive"


class NoSuchDisk(NotFound):
    id = "replica-no-such-disk"


class NeedsAttestedHost(Unsupported):
    id = "replica-needs-attested-host"


class ExtensionNotConsistent(InvalidInput):
    """A replica that is sent on has the points that came."""

    id = "replica-extension-not-consistent"


@dataclass(frozen=True)
class _Sent:
    sender: Replicator
    task: asyncio.Task[None]


@dataclass(frozen=True)
class _Subject:
    """What a name stands for."""

    id: str
    """Of the VM."""
    name: str
    book: ReplicationBook
    spec: VmSpec | None
    """Of a VM of this host."""


class Replications:
    """`extensions`: the records of replicas that are sent on, by which their senders know them."""

    def __init__(
        self,
        means: Means,
        registry: VmRegistry,
        state: StateFolder,
        history: History,
        held: HeldMeans,
        extensions: ReplicationBook,
    ) -> None:
        self._means = means
        self._held = held
        self._extensions = extensions
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
        for replication in await self._extensions.all():
            await self._begin_extension(replication)
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
        peer = await self.receiver(request.peer)
        require_sendable(owner.record.name, owner.record.spec, request)
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

    async def receiver(self, name: str) -> ReplicaPeer:
        """A peer that something can be sent to. Raises PeerNotFound, PeerCannotReceive."""
        peer = await self._means.peers.get(name)
        if peer.role is not PeerRole.RECEIVER:
            raise PeerCannotReceive(
                f"{peer.name!r} sends replicas to this host; nothing can be sent to it",
                value=peer.name,
                cure="Pair the other way round: `holdfast replica accept` there, `replica peer add` here.",
            )
        return peer

    async def extend(self, replication: Replication) -> None:
        """Send on a replica that is held, from now on. Raises AlreadyReplicated."""
        async with self._changing:
            await self._extensions.add(replication)
            await self._begin_extension(replication)

    async def end_extension(self, replication: Replication) -> None:
        """Send a replica on no more. Raises NotReplicated."""
        async with self._changing:
            await self._extensions.remove(replication)
            await self._end(replication.id, forget=True)

    async def become(self, replication: Replication) -> None:
        """The VM of a replica that was sent on is this host's: it is sent itself, and goes on with what is
        held over there. Raises NotReplicated.
        """
        async with self._changing:
            await self._end(replication.id, forget=True)
            if await self._extensions.become(replication):
                await self._begin(await self._means.book.of(replication.vm, replication.peer))

    def relay(self, id_: str) -> Relay | None:
        """The sender of a replica that is sent on, by the extension's id."""
        sent = self._sent.get(id_)
        return sent.sender if sent is not None and isinstance(sent.sender, Relay) else None

    def arrived(self, vm: str) -> None:
        """A cycle of a replica that is held, by its VM's id, is whole here."""
        for each in self._sent.values():
            if each.sender.replication.vm == vm and isinstance(each.sender, Relay):
                each.sender.wake()

    async def disable(self, name: str, peer: str | None = None) -> None:
        """Replicate a VM no more, to a peer or to its only one; what is held over there stays.

        Raises VmNotFound, NotReplicated, SeveralPeers.
        """
        subject = await self._subject(name)
        async with self._changing:
            replication = await subject.book.of(subject.id, peer)
            await subject.book.remove(replication)
            await self._end(replication.id, forget=True)

    async def set(self, name: str, request: ReplicaChange, peer: str | None = None) -> ReplicaStatus:
        """Change settings, from the next cycle on; a limit and a priority hold at once.

        Raises:
            VmNotFound, NotReplicated, SeveralPeers
            BadRetention, BadLimit, BadSchedule, NoSuchDisk, NicNotFound, NothingToReplicate
            ExtensionNotConsistent
        """
        subject = await self._subject(name)
        spec = subject.spec or (await self.sent_vm(subject.name, subject.id)).spec
        async with self._changing:
            replication = await subject.book.of(subject.id, peer)
            given = {key: getattr(request, key) for key in request.model_fields_set}
            wanted = {key: value for key, value in given.items() if value is not None}
            if request.failover is not None:
                wanted["failover"] = replication.settings.failover.changed_to(request.failover)
            settings = replication.settings.model_copy(update=wanted)
            require_sendable(subject.name, spec, settings)
            if subject.spec is None and settings.consistent_seconds:
                raise ExtensionNotConsistent(
                    f"replica {subject.name!r} is sent on as it comes",
                    value=settings.consistent_seconds,
                    cure="Ask for application-consistent points on the VM's own host.",
                )
            replication = await subject.book.set(replication, settings)
            self._sent[replication.id].sender.changed(replication)
        return await self.show(name, replication.peer)

    async def pause(self, name: str, peer: str | None = None, *, paused: bool) -> ReplicaStatus:
        """Send nothing until it is resumed, or resume; what changes meanwhile stays known.

        Raises VmNotFound, NotReplicated, SeveralPeers.
        """
        subject = await self._subject(name)
        async with self._changing:
            replication = await subject.book.of(subject.id, peer)
            if replication.paused is not paused:
                replication = await subject.book.pause(replication, paused=paused)
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
        subject = await self._subject(name)
        return await self._status(subject, await subject.book.of(subject.id, peer))

    async def list(self, vm: str | None = None) -> tuple[ReplicaStatus, ...]:
        """All replications, or those of one VM, by VM and peer. Raises VmNotFound, NotReplicated."""
        return tuple([status for status, _ in await self._all(vm)])

    async def explain(self, name: str) -> tuple[ReplicaExplanation, ...]:
        """Why its replications are as they are, one for each peer. Raises VmNotFound, NotReplicated."""
        moment, found = Moment(time.monotonic(), datetime.now().astimezone()), []
        for status, replication in await self._all(name):
            sender = self._sent[replication.id].sender
            figures = sender.figures.now(moment.monotonic)
            facts = facts_of(sender, figures, moment.monotonic, status.moved_to)
            found.append(explain(status, facts, sender.progress, moment))
        return tuple(found)

    async def history(self, name: str, since: timedelta, peer: str | None = None) -> ReplicaHistory:
        """What happened lately. Raises VmNotFound, NotReplicated, SeveralPeers, BadHistoryTime."""
        subject = await self._subject(name)
        replication = await subject.book.of(subject.id, peer)
        status = await self._status(subject, replication)
        kept = await self._recording.read(replication.id, since)
        return told(status.vm, status.peer, kept, last_sync=status.last_sync, last_test=status.last_test)

    async def profiles(
        self, name: str | None, since: timedelta
    ) -> tuple[tuple[ReplicaStatus, tuple[Kept, ...]], ...]:
        """What was measured of one VM, or of all. Raises VmNotFound, NotReplicated, BadHistoryTime."""
        return tuple(
            [(status, await self._recording.read(each.id, since)) for status, each in await self._all(name)]
        )

    async def reset_history(self, name: str, peer: str | None = None) -> None:
        """Forget what happened, and measure anew from now on.

        Raises VmNotFound, NotReplicated, SeveralPeers.
        """
        subject = await self._subject(name)
        replication = await subject.book.of(subject.id, peer)
        await self._recording.reset(replication.id)
        if sent := self._sent.get(replication.id):
            sent.sender.measure_anew()

    async def _subject(self, name: str) -> _Subject:
        """Raises VmNotFound."""
        found = None
        with contextlib.suppress(NoSuchReplica):
            held = await self._held.book.get(name)
            found = _Subject(held.vm, held.name, self._extensions, None)
        extended = found is not None and bool(await self._extensions.all(found.id))
        try:
            record = (await self._registry.named(name)).record
        except VmNotFound:
            if found is not None and extended:
                return found
            raise
        if found is not None and extended and not await self._means.book.all(record.id):
            return found
        return _Subject(record.id, record.name, self._means.book, record.spec)

    async def _all(self, name: str | None) -> builtins.list[tuple[ReplicaStatus, Replication]]:
        """By VM and peer; of one name, or of all."""
        found = []
        if name is not None:
            one = await self._subject(name)
            subjects = [(one, each) for each in await one.book.all(one.id)]
            if not subjects:
                await one.book.of(one.id)  # says so
        else:
            subjects = [(await self._of_vm(each), each) for each in await self._means.book.all()]
            for each in await self._extensions.all():
                relay = self.relay(each.id)
                if relay is not None:
                    subjects.append((_Subject(each.vm, relay.name, self._extensions, None), each))
        for subject, replication in subjects:
            found.append((await self._status(subject, replication), replication))
        return sorted(found, key=lambda each: (each[0].vm.lower(), each[0].peer.lower()))

    async def _of_vm(self, replication: Replication) -> _Subject:
        record = (await self._registry.owner(replication.vm)).record
        return _Subject(record.id, record.name, self._means.book, record.spec)

    async def sent_vm(self, name: str, vm: str) -> SentVm:
        """What came beside the disks of a replica's newest point that can be used.

        Raises NoPoints, ReplicaNotFound, ReplicaSpecDamaged.
        """

        def read() -> SentVm:
            replica = self._held.store.replica(name)
            point = chosen(name, replica.points(), None)
            return read_sent(replica.attachments(point.number).get("spec"), vm)

        return await asyncio.to_thread(read)

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

    async def _begin_extension(self, replication: Replication) -> None:
        held = await self._held.book.of_vm(replication.vm)
        if held is None:
            log.warning("a replica that was sent on is gone", vm=replication.vm)
            return
        relay = Relay(replication, replace(self._means, book=self._extensions), self._held, held)
        await self._recording.recall(replication.id, relay.figures)
        self._sent[replication.id] = _Sent(relay, self._task(relay))

    def _task(self, sender: Replicator) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(sender), name=f"replica of {sender.replication.vm}")

    @staticmethod
    async def _run(sender: Replicator) -> None:
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
        left = {each.id for each in (*await self._means.book.all(), *await self._extensions.all())}
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

    async def _moved_to(self, sender: Replicator) -> str:
        if not sender.fenced or self._means.turns is None:
            return ""
        if isinstance(sender, Relay):
            return sender.replication.peer
        known = self._means.turns.known(sender.replication.vm)
        names = {each.fingerprint: each.name for each in reversed(await self._means.peers.peers())}
        return names.get(known.peer, "") if known else ""

    async def _status(self, subject: _Subject, replication: Replication) -> ReplicaStatus:
        sent, name = self._sent.get(replication.id), subject.name
        if sent is None:
            raise NotReplicated(f"VM {name!r} is not replicated", value=name)
        moved_to = await self._moved_to(sent.sender)
        status = status_of(name, sent.sender, time.monotonic(), moved_to)
        limits = self._means.dispatch.limits
        shared = {"host_limit": limits.host, "peer_limit": limits.peers.get(sent.sender.fingerprint, "none")}
        return status.model_copy(update={**shared, "sent_on": subject.spec is None})


def require_sendable(name: str, spec: VmSpec, settings: ReplicaEnable) -> None:
    """Whether a VM can be replicated so.

    Raises:
        BadRetention, BadLimit, BadSchedule, NoSuchDisk, NicNotFound, NothingToReplicate, NeedsAttestedHost
    """
    require_usable(settings)
    initial_from(settings.initial, datetime.now())
    disks = {each.id for each in spec.disks}
    if unknown := [each for each in settings.exclude if each not in disks]:
        raise NoSuchDisk(
            f"VM {name!r} has no disk {unknown[0]!r}",
            value=unknown[0],
            cure=f"Its disks are {', '.join(sorted(disks)) or 'none'}.",
        )
    if not disks - set(settings.exclude):
        raise NothingToReplicate(
            f"no disk of VM {name!r} is left to replicate", value=name, cure="Exclude fewer."
        )
    if spec.require_attested_host:
        raise NeedsAttestedHost(
            f"VM {name!r} runs on attested hosts only, and it is not known of replicas' hosts",
            value=name,
            cure="Take that demand back (`holdfast vm set`), or do not replicate it.",
        )
    require_nics(spec, settings.failover)
