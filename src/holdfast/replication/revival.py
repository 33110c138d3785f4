"""VMs made from points of replicas: begun here, carried out by `reviving`. Owner of which points are open.

    point opened ─▶ record and operation, in one transaction ─▶ ... ─▶ no specification names it ─▶ closed

A point is open as long as a specification of some VM names its token: a crash at any moment leaves nothing
else open, for `sweep` closes what is not named. So deleting such a VM is all that has to be done.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import Session

from holdfast.catalog.tables import VmRow
from holdfast.host.space import require_memory
from holdfast.operations.engine import Operations
from holdfast.replication.attachments import SentVm
from holdfast.replication.origins import ReplicaOrigins
from holdfast.replication.replica_records import HeldVm
from holdfast.replication.revived_spec import Here, RevivedSpec, read_sent, revived
from holdfast.replication.reviving import REVIVE, SETTLE
from holdfast.replication.store.errors import PointLost, PointNotFound, ReplicaInUse
from holdfast.replication.store.opened import read_opened
from holdfast.replication.store.points import OpenPoint
from holdfast.replication.store.record import Point
from holdfast.replication.store.replica import ReplicaStore
from holdfast.spec.appliance import Finding
from holdfast.spec.errors import Conflict, HoldfastError, RemoteError
from holdfast.spec.failover import FailoverNetwork
from holdfast.spec.ids import new_id
from holdfast.spec.names import MAX_NAME
from holdfast.spec.operation import Operation
from holdfast.spec.vm import UefiBoot, VmSpec
from holdfast.spec.vm_requests import NewNic
from holdfast.storage.images import ImageNotFound, require_stored
from holdfast.trust.firmware import choose_firmware
from holdfast.trust.firmware_state import FirmwareState, opened
from holdfast.trust.protection import RecipientOpener
from holdfast.vm import records
from holdfast.vm.admission import Verb
from holdfast.vm.disk_settling import specs_of
from holdfast.vm.import_admission import VmIdTaken
from holdfast.vm.import_state import keep_state
from holdfast.vm.planning import Planner
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms
from holdfast.vm.usage import images_of

log = structlog.get_logger(__name__)


class NoPoints(Conflict):
    id = "replica-no-points"


class ReplicaFirmwareMissing(Conflict):
    id = "replica-firmware-missing"


class NotOnReplica(Conflict):
    id = "vm-not-on-replica"


@dataclass(frozen=True)
class Revived:
    vm: str
    """The VM's id on this host."""
    name: str
    operation: str
    """Id of the one that makes it."""
    point: Point
    findings: tuple[Finding, ...]
    """What of the VM is not as on its source."""
    sent: SentVm
    """What was sent: what is in it may only be used through `failover_network`."""


@dataclass(frozen=True)
class Wanted:
    """What is to be made of a point."""

    name: str
    same_identity: bool
    """The VM itself: its id, MAC addresses and TPM identity; else one beside it, with an id of its own.

    The identity of its TPM is the source VM's all the same: a guest that has sealed something finds it.
    """
    isolated: bool
    """Its NICs are there, with the source's addresses, and in no network."""
    start: bool
    vm: str | None = None
    """Id that it is to have; None: the source's with `same_identity`, else a new one."""
    actor: str = ""


class Revival:
    """`key`: path of the private key by which firmware state is sealed for this host."""

    def __init__(
        self,
        rooms: Rooms,
        registry: VmRegistry,
        operations: Operations,
        store: ReplicaStore,
        origins: ReplicaOrigins,
        key: Path,
    ) -> None:
        self._rooms = rooms
        self._registry = registry
        self._operations = operations
        self._store = store
        self._origins = origins
        self._key = key
        self._planner = Planner(rooms)
        self._opening = asyncio.Lock()
        """Held from the opening of a point until a record names it."""
        self.make_way: Callable[[str], Awaitable[None]] | None = None
        """Told the name of a replica that a VM is to be made of for use: what only tries it out is ended."""

    async def begin(self, held: HeldVm, number: int | None, wanted: Wanted) -> Revived:
        """Begin to make a VM that stands on a point, and to start it where that is wanted.

        On failure nothing of it is left. Replication goes on meanwhile, and afterwards.

        Args:
            number: the store's point; None: the newest that is not lost.

        Raises:
            NoPoints, PointNotFound, PointLost, TooManyOpenPoints: it cannot be opened.
            ReplicaInUse: a VM stands on a point of this replica already.
            ReplicaSpecDamaged, ReplicaFirmwareMissing, RevivedNeedsAttestedHost, ImageNotFound,
            VmIdTaken, VmNameTaken, MacTaken, MemoryShort, ...: no such VM can be made here.
        """
        if not wanted.isolated and self.make_way is not None:
            await self.make_way(held.name)
        async with self._opening:
            await self._require_unused(held.name)
            replica = await asyncio.to_thread(self._store.replica, held.name)
            point = chosen(held.name, replica.points(), number)
            opened = await asyncio.to_thread(replica.open_point, point.number)
            try:
                return await self._submit(held, opened, point, wanted)
            except BaseException:
                # Where only the end of it was missed, the record names the point, which then stays open.
                await asyncio.shield(self._sweep())
                raise

    async def ended(self, begun: Revived) -> None:
        """Wait until a VM that was begun is made, or not. Raises RemoteError: what that failed by."""
        try:
            ended = await self._operations.wait(begun.operation)
        finally:
            await asyncio.shield(self._swept())
        if ended.error:
            raise RemoteError(ended.error)

    async def revive(self, held: HeldVm, number: int | None, wanted: Wanted) -> Revived:
        """`begin` and `ended`; raises as both."""
        begun = await self.begin(held, number, wanted)
        await self.ended(begun)
        return begun

    async def settle(self, vm: str, actor: str = "") -> Operation:
        """Copy all that a VM still reads from a replica into volumes of its own, running or not.

        Once the operation has ended the point is closed. Raises NotOnReplica, VmNotFound, VmBusy.
        """
        owner = await self._registry.named(vm)
        if not _tokens(await specs_of(self._rooms, owner.record)):
            raise NotOnReplica(
                f"VM {owner.record.name!r} stands on no replica",
                value=owner.record.name,
                cure="There is nothing to do: all its disks are its own.",
            )
        return await self._registry.begin(SETTLE, owner, Verb.MERGE, {}, actor)

    async def sweep(self) -> None:
        """Close every point that no specification names."""
        async with self._opening:
            await self._sweep()

    async def keep(self) -> None:
        """Sweep when that may help, for ever."""
        last = await self._rooms.events.last_id()
        await self._swept()
        async for event in self._rooms.events.follow(last):
            if event.kind in ("vm.deleted", "vm.disk-settled", "vm.checkpoint-deleted"):
                await self._swept()

    async def _sweep(self) -> None:
        named: set[tuple[str, str]] = set()
        for record in await self._rooms.records.all():
            named |= _tokens(await specs_of(self._rooms, record))
        await asyncio.to_thread(self._close_unnamed, named)

    async def _swept(self) -> None:
        try:
            await self.sweep()
        except (HoldfastError, OSError) as error:
            log.warning("points that nobody needs could not be closed", error=str(error))

    def _close_unnamed(self, named: set[tuple[str, str]]) -> None:
        for name in self._store.names():
            folder = self._store.folder(name) / "open"
            tokens = set(read_opened(folder)) if folder.is_dir() else set()
            unnamed = {token for token in tokens if (name, token) not in named}
            for token in unnamed:
                self._store.replica(name).close_point(token)
            if unnamed and unnamed == tokens:
                self._origins.revoke(name)

    async def _require_unused(self, replica: str) -> None:
        """Its files are let be read by the user of one VM."""
        for record in await self._rooms.records.all():
            if any(name == replica for name, _ in _tokens(await specs_of(self._rooms, record))):
                raise ReplicaInUse(
                    f"VM {record.name!r} stands on a point of replica {replica!r}",
                    value=record.name,
                    cure="Delete that VM, wait until it is settled, or end the test that it is of"
                    f" (`holdfast replica test {replica} --end`).",
                )

    async def _submit(self, held: HeldVm, opened: OpenPoint, point: Point, wanted: Wanted) -> Revived:
        sent = read_sent(opened.attachments.get("spec"), held.vm)
        made = revived(
            sent,
            {disk: each.size for disk, each in opened.disks.items()},
            (held.name, opened.token),
            await self._here(sent.spec),
            isolated=wanted.isolated,
        )
        await self._planner.require_free_name(wanted.name)
        if wanted.start:
            await asyncio.to_thread(require_memory, made.spec.memory)
        spec = await self._with_addresses(made.spec, wanted)
        vm_id = await self._id(held.vm, wanted)
        state = await self._state(sent, opened)
        spec = _with_tpm(spec, vm_id, state.tpm.identity if state and state.tpm else None)
        kept = await keep_state(self._rooms, state) if state is not None else None
        params = self._params(sent, made, wanted, vm_id, kept)

        def reserve(session: Session, operation: str) -> None:
            if session.get(VmRow, vm_id) is not None:
                raise _id_taken(vm_id)
            require_stored(session, images_of(spec))
            records.insert(session, vm_id, wanted.name, spec, operation)

        try:
            operation = await self._operations.submit(REVIVE, wanted.name, params, wanted.actor, reserve)
        except HoldfastError:
            if kept is not None:
                kept.unlink(missing_ok=True)
            raise
        return Revived(vm_id, wanted.name, operation.id, point, made.findings, sent)

    @staticmethod
    def _params(
        sent: SentVm, made: RevivedSpec, wanted: Wanted, vm_id: str, kept: Path | None
    ) -> dict[str, Any]:
        asked, network = datetime.now(UTC), FailoverNetwork() if wanted.isolated else sent.failover
        return {
            "vm": vm_id,
            "full_copies": {},
            "start": wanted.start,
            "requested": asked.isoformat(),
            "source": {
                "id": sent.id,
                "name": sent.name[:MAX_NAME],
                "failover": network.model_dump(mode="json"),
                "number": int(asked.timestamp() * 1000),
            },
            "state": str(kept) if kept is not None else None,
            "uploads": [str(kept)] if kept is not None else [],
            "findings": [each.model_dump(mode="json") for each in made.findings],
        }

    async def _here(self, spec: VmSpec) -> Here:
        images = set()
        for digest in {drive.image for drive in spec.cd_drives if drive.image is not None}:
            try:
                await self._rooms.images.path(digest)
                images.add(digest)
            except ImageNotFound:
                continue
        return Here(
            switches=frozenset(each.name for each in await self._rooms.switches.all()),
            images=frozenset(images),
            max_cpus=self._rooms.machines.max_cpus,
        )

    async def _with_addresses(self, spec: VmSpec, wanted: Wanted) -> VmSpec:
        """MAC addresses that nobody else has, where anybody could meet them."""
        if wanted.isolated:
            return spec
        if wanted.same_identity:
            for nic in spec.nics:
                await self._planner.require_free_mac(nic.mac)
            return spec
        fresh = await self._planner.nics([NewNic() for _ in spec.nics])
        nics = tuple(
            nic.model_copy(update={"mac": new.mac}) for nic, new in zip(spec.nics, fresh, strict=True)
        )
        return spec.model_copy(update={"nics": nics})

    async def _id(self, source: str, wanted: Wanted) -> str:
        """A VM's sockets are found by its first eight digits. Raises VmIdTaken."""
        taken = {record.id[:8] for record in await self._rooms.records.all()}
        vm_id = wanted.vm or (source if wanted.same_identity else new_id())
        if vm_id[:8] in taken:
            raise _id_taken(vm_id)
        return vm_id

    async def _state(self, sent: SentVm, point: OpenPoint) -> FirmwareState | None:
        """What came as `firmware`, for a VM that has some. Raises ReplicaFirmwareMissing, as `opened`."""
        boot = sent.spec.boot
        if not isinstance(boot, UefiBoot):
            return None
        await asyncio.to_thread(choose_firmware, boot.secure_boot)
        sealed = point.attachments.get("firmware")

        def read() -> FirmwareState | None:
            opener = RecipientOpener.of_pem(self._key.read_bytes())
            return opened(sealed, opener) if sealed is not None else None

        state = await asyncio.to_thread(read)
        if state is None or (state.tpm is None) is boot.tpm:
            raise ReplicaFirmwareMissing(
                f"no firmware state of VM {sent.name[:64]!r} came with that point",
                value=point.number,
                cure="Choose another point.",
            )
        return state


def chosen(name: str, points: tuple[Point, ...], number: int | None) -> Point:
    """The point of that number; None: the newest that is not lost. Raises as `Revival.begin`."""
    if number is None:
        whole = [point for point in points if not point.lost]
        if not whole:
            raise NoPoints(
                f"replica {name!r} has no point that can be opened",
                value=name,
                cure="Wait until a cycle has arrived whole.",
            )
        return whole[-1]
    found = next((point for point in points if point.number == number), None)
    if found is None:
        raise PointNotFound(
            f"replica {name!r} has no point {number}",
            value=number,
            cure=f"See `holdfast replica points {name}`.",
        )
    if found.lost:
        raise PointLost(f"point {number} is lost: {found.lost}", value=number, cure="Choose another point.")
    return found


def _tokens(specs: list[VmSpec]) -> set[tuple[str, str]]:
    """Replica and token of each point that specifications name."""
    origins = [disk.origin for spec in specs for disk in spec.disks if disk.origin is not None]
    return {(each.replica, each.token) for each in origins}


def _with_tpm(spec: VmSpec, vm_id: str, identity: str | None) -> VmSpec:
    if not isinstance(spec.boot, UefiBoot):
        return spec
    kept = None if identity == vm_id else identity
    return spec.model_copy(update={"boot": spec.boot.model_copy(update={"tpm_identity": kept})})


def _id_taken(vm_id: str) -> VmIdTaken:
    return VmIdTaken(
        f"this host has a VM with the id {vm_id}",
        value=vm_id,
        cure="It is that VM, or one made of it: delete what is no more needed.",
    )
