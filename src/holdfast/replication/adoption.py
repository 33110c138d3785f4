"""A fenced VM's own disks become the base of its replica, so that only what differs comes back over the link.

    fenced, for good over there, and off ─▶ replica.adopt: disks copied beside ─▶ placed as a replica without
    points, which is compared ─▶ adopting ─▶ the first whole cycle arrived ─▶ the VM is deleted ─▶ replica

Until that cycle has arrived whole nothing of the VM is touched: all that it has is copied, not moved. Where
the file system can, copies stand on the same blocks, which takes neither time nor room.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from holdfast.host.files import can_share, remove_tree, sync_folder
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.replication.asking import TurnAsker
from holdfast.replication.pairing import PeerBook
from holdfast.replication.replica_records import ReplicaBook
from holdfast.replication.store.errors import ReplicaNotFound
from holdfast.replication.store.replica import ReplicaStore
from holdfast.replication.taking_over import Vms
from holdfast.replication.turns import TurnBook, TurnRecord
from holdfast.replication.wire import Query
from holdfast.spec.attachment import FilePlace
from holdfast.spec.errors import HoldfastError
from holdfast.spec.replica import PeerRole, ReplicaPeer
from holdfast.spec.turn import Turn
from holdfast.spec.vm import VmState, VolumeFormat
from holdfast.storage.convert import take_back
from holdfast.storage.scratch import operation_folder
from holdfast.storage.volume_content import flatten
from holdfast.vm.admission import Verb
from holdfast.vm.lifecycle import Find
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)

ADOPT = "replica.adopt"
_ROUND_SECONDS = 1.0
_AGAIN_SECONDS = 60.0
"""After which an adoption that failed is tried again."""
_OFF = (VmState.OFF, VmState.FAILED, VmState.SAVED)


@dataclass(frozen=True)
class Means:
    rooms: Rooms
    turns: TurnBook
    peers: PeerBook
    held: ReplicaBook
    store: ReplicaStore
    asker: TurnAsker
    vms: Vms
    pin: Callable[[], Awaitable[None]]
    """Let in who may send."""
    send_no_more: Callable[[str], Awaitable[None]]
    """Ends all replication of a VM of this host."""
    note_others: Callable[[TurnRecord], Awaitable[None]]
    """Before that, and while its records are there: who else it was sent to."""


class Adoption:
    def __init__(self, means: Means, registry: VmRegistry, operations: Operations) -> None:
        self._means = means
        self._registry = registry
        self._operations = operations
        self._not_before: dict[str, float] = {}

    async def keep(self) -> None:
        """Adopt what is fenced for good, and let go of what is whole; for ever."""
        while True:
            for each in self._means.turns.all():
                try:
                    await self._look(each)
                except (HoldfastError, OSError) as error:
                    self._later(each.vm)
                    log.warning("a VM could not become a replica", vm=each.name, error=str(error))
                except Exception:
                    self._later(each.vm)
                    log.exception("a VM could not become a replica by a fault of ours", vm=each.name)
            await asyncio.sleep(_ROUND_SECONDS)

    def _later(self, vm: str) -> None:
        self._not_before[vm] = asyncio.get_running_loop().time() + _AGAIN_SECONDS

    async def _look(self, known: TurnRecord) -> None:
        if asyncio.get_running_loop().time() < self._not_before.get(known.vm, 0.0):
            return
        if known.turn is Turn.FENCED and known.committed:
            await self._adopt(known)
        elif known.turn is Turn.ADOPTING and await self._is_whole(known.vm):
            await self._means.vms.delete(known.vm)
            await self._means.turns.turn(known.vm, Turn.REPLICA, {Turn.ADOPTING})

    async def _adopt(self, known: TurnRecord) -> None:
        await self._let_in(known)
        await self._means.note_others(known)
        record = await self._means.vms.record(known.vm)
        if record is None:
            await self._means.turns.turn(known.vm, Turn.REPLICA, {Turn.FENCED}, committed=False)
            return
        stands_on_other = any(disk.origin is not None for disk in record.spec.disks)
        if record.state not in _OFF or record.operation is not None or stands_on_other:
            return
        owner = await self._registry.named(known.vm)
        begun = await self._registry.begin(ADOPT, owner, Verb.DELETE, {"peer": known.peer}, "replication")
        ended = await self._operations.wait(begun.id)
        if ended.error:
            self._later(known.vm)

    async def _let_in(self, known: TurnRecord) -> None:
        receiver = await self._means.peers.of(known.peer, PeerRole.RECEIVER)
        if receiver is not None and await self._means.peers.of(known.peer, PeerRole.SOURCE) is None:
            await self._means.peers.turned(receiver, PeerRole.SOURCE)
            await self._means.pin()

    async def _is_whole(self, vm: str) -> bool:
        held = await self._means.held.of_vm(vm)
        if held is None:
            return False
        with contextlib.suppress(ReplicaNotFound):
            replica = await asyncio.to_thread(self._means.store.replica, held.name)
            return bool(replica.points()) and not replica.must_compare()
        return False


def procedures(means: Means, find: Find) -> list[Procedure]:
    def result(job: Job) -> dict[str, Any]:
        return {"vm": job.subject, "replica": job.notes["replica"]}

    return [Procedure(ADOPT, (CopyDisks(means.rooms, find), _Place(means)), result)]


class CopyDisks:
    """Into `scratch/operation-<id>/replica/base/<disk>`: raw, sparse, and durable.

    Args:
        shared: the VM may run; what it writes meanwhile is there in part.
    """

    title = "copy the disks"
    weight = 10.0

    def __init__(self, rooms: Rooms, find: Find, *, shared: bool = False) -> None:
        self._rooms = rooms
        self._find = find
        self._shared = shared

    async def do(self, job: Job) -> None:
        rooms = self._rooms
        await (await self._find(job.params["vm"])).rest.give_way()
        base = operation_folder(rooms.state.scratch, job.id) / "replica" / "base"
        await asyncio.to_thread(emptied, base)
        record = await rooms.records.get(job.params["vm"])
        identity = rooms.identities.of(record.number)
        total, before = sum(disk.size for disk in record.spec.disks) or 1, 0
        for disk in record.spec.disks:
            target = base / disk.id

            def progress(part: float, _: str, size: int = disk.size, done: int = before) -> None:
                job.progress((done + part * size) / total)

            await rooms.volumes.grant(record.name, disk, identity)
            chain = rooms.volumes.chain(record.name, disk)
            top = chain[0].place
            same = isinstance(top, FilePlace) and await asyncio.to_thread(can_share, top.path, base)
            await flatten(
                rooms.processes,
                chain,
                FilePlace(path=target),
                disk.size,
                VolumeFormat.RAW,
                owner=f"operation:{job.id}",
                identity=identity,
                progress=progress,
                shared=self._shared,
                share_blocks=same and not self._shared,
            )
            await asyncio.to_thread(take_back, target)
            before += disk.size

    async def undo(self, job: Job) -> None:
        await asyncio.to_thread(remove_tree, operation_folder(self._rooms.state.scratch, job.id))


class _Place:
    title = "make them the base of a replica"
    weight = 0.2

    def __init__(self, means: Means) -> None:
        self._means = means

    async def do(self, job: Job) -> None:
        means, vm = self._means, job.params["vm"]
        folder = operation_folder(means.rooms.state.scratch, job.id)
        peer = await _required(means.peers, job.params["peer"])
        held = await means.held.adopt(vm, job.subject, peer)
        job.notes["replica"] = held.name
        await asyncio.to_thread(private, folder / "replica")
        await asyncio.to_thread(means.store.place, held.name, folder / "replica")
        await means.turns.turn(vm, Turn.ADOPTING, {Turn.FENCED})
        await means.send_no_more(vm)
        await asyncio.to_thread(remove_tree, folder)
        receiver = await means.peers.of(job.params["peer"], PeerRole.RECEIVER)
        if receiver is not None:
            with contextlib.suppress(HoldfastError, OSError):  # else it tries by itself, a little later
                await means.asker.ask(
                    receiver, Query(vm=vm, turn=Turn.ADOPTING, term=means.turns.term(vm)), 5.0
                )

    async def undo(self, job: Job) -> None:
        """What was placed stays: it is compared whenever it is used."""


async def _required(peers: PeerBook, fingerprint: str) -> ReplicaPeer:
    found = await peers.of(fingerprint, PeerRole.SOURCE)
    if found is None:
        found = await peers.of(fingerprint, PeerRole.RECEIVER)
    if found is None:
        raise ReplicaNotFound("the host that the VM failed over to is paired no more", value=fingerprint)
    return found


def emptied(base: Path) -> None:
    """The folder for disks, made anew."""
    remove_tree(base.parent)
    base.mkdir(parents=True)
    for each in (base.parents[1], base.parent, base):
        # Others may pass through: the disks are read by the VM's own user, who writes the copies.
        each.chmod(0o711)


def private(replica: Path) -> None:
    """Nobody else may read what `emptied` made and was filled."""
    if not replica.exists():
        return  # it was placed before the daemon was killed
    for each in (replica / "base").iterdir():
        each.chmod(0o600)
    for each in (replica / "base", replica):
        each.chmod(0o700)
        sync_folder(each)
