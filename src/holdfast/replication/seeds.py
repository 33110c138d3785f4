"""What an initial copy need not carry over the link: a seed on a medium, or a copy of the VM that is there.

    source    replica.export-seed   disks copied beside ─▶ sealed onto the medium, the description last
    receiver  replica.import-seed   unsealed beside ─▶ placed as a replica without points
              replica.seed-from-vm  disks of a VM of this host copied beside ─▶ placed likewise

What was placed counts for nothing until both sides were compared, which they are once the source sends.
"""

import asyncio
import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from holdfast.host.files import remove_tree, sync_folder
from holdfast.host.space import require_space
from holdfast.operations.engine import Operations
from holdfast.operations.procedure import Job, Procedure
from holdfast.replication.adoption import CopyDisks, emptied, private
from holdfast.replication.identity import Identity
from holdfast.replication.pairing import PeerBook, PeerNotFound
from holdfast.replication.replica_records import ReplicaBook, TooManyReplicas
from holdfast.replication.seed_format import (
    MANIFEST,
    BadSeed,
    Manifest,
    SeedDisk,
    open_part,
    pack_disk,
    read_manifest,
    require_signed,
    unpack_disk,
    write_manifest,
)
from holdfast.replication.store.errors import ReplicaExists, ReplicaFull, ReplicaNotFound
from holdfast.replication.store.replica import ReplicaStore
from holdfast.spec.errors import InvalidInput
from holdfast.spec.ids import new_id
from holdfast.spec.operation import Operation
from holdfast.spec.replica import PeerRole, ReplicaPeer
from holdfast.spec.seed import SeedExport, SeedFromVm, SeedImport
from holdfast.spec.units import GIB
from holdfast.storage.scratch import operation_folder
from holdfast.trust.envelope import KEY_BYTES
from holdfast.trust.protection import RecipientLock, RecipientOpener
from holdfast.vm.admission import Verb
from holdfast.vm.lifecycle import Find
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms

EXPORT, IMPORT, FROM_VM = "replica.export-seed", "replica.import-seed", "replica.seed-from-vm"


class SeedFolderUnusable(InvalidInput):
    """The folder that a seed is to be written to."""

    id = "replica-seed-folder-unusable"


@dataclass(frozen=True)
class Means:
    identity: Identity
    rooms: Rooms
    peers: PeerBook
    held: ReplicaBook
    store: ReplicaStore


class Seeds:
    def __init__(self, means: Means, registry: VmRegistry, operations: Operations) -> None:
        self._means = means
        self._registry = registry
        self._operations = operations

    async def export(self, name: str, request: SeedExport, actor: str) -> Operation:
        """Write the disks of a VM, which may run, for one receiver.

        Raises VmNotFound, VmBusy, PeerNotFound, SeedFolderUnusable.
        """
        owner = await self._registry.named(name)
        peer = await self._peer(request.peer, PeerRole.RECEIVER)
        await asyncio.to_thread(_require_empty, Path(request.folder))
        params = {"peer": peer.name, "folder": request.folder, "seed": new_id()}
        return await self._registry.begin(EXPORT, owner, Verb.CHECKPOINT, params, actor)

    async def take(self, request: SeedImport, actor: str) -> Operation:
        """Make a seed the base of a replica. Raises BadSeed, PeerNotFound and as `_require_room`."""
        manifest, peer = await self._checked(Path(request.folder))
        await self._require_room(peer, manifest.vm, manifest.name)
        total = sum(
            [
                await asyncio.to_thread(_part_bytes, Path(request.folder), number)
                for number in range(len(manifest.disks))
            ]
        )
        await asyncio.to_thread(require_space, self._means.rooms.state.scratch, total + GIB)
        space = peer.limits.space
        if space is not None and total > space:
            raise ReplicaFull(
                f"the seed has {total} bytes; {peer.name} may have {space}",
                value=total,
                cure="Pair anew with a token that allows more.",
            )
        params = {"folder": request.folder, "source_vm": manifest.vm, "peer": peer.fingerprint}
        return await self._operations.submit(IMPORT, manifest.name, params, actor)

    async def from_vm(self, request: SeedFromVm, actor: str) -> Operation:
        """Make a copy of a VM, restored here from a backup, the base of its replica; it stays as it is.

        Raises VmNotFound, VmBusy, VmInWrongState, PeerNotFound and as `_require_room`.
        """
        owner = await self._registry.named(request.from_vm)
        peer = await self._peer(request.peer, PeerRole.SOURCE)
        name = request.name or owner.record.name
        await self._require_room(peer, request.vm, name)
        params = {"source_vm": request.vm, "name": name, "peer": peer.fingerprint}
        return await self._registry.begin(FROM_VM, owner, Verb.EXPORT, params, actor)

    async def _peer(self, name: str, role: PeerRole) -> ReplicaPeer:
        peer = await self._means.peers.get(name)
        if peer.role is not role:
            raise PeerNotFound(
                f"peer {name!r} is a {peer.role}, not a {role}",
                value=name,
                cure="List them with `holdfast replica peer list`.",
            )
        return peer

    async def _checked(self, folder: Path) -> tuple[Manifest, ReplicaPeer]:
        return await checked(self._means, folder)

    async def _require_room(self, peer: ReplicaPeer, vm: str, name: str) -> None:
        """Raises ReplicaExists, TooManyReplicas, ReplicaFailedOver, ReplicaNotReady."""
        await self._means.held.require_free(peer, vm, name)
        held = await self._means.held.of_vm(vm)
        if held is None:
            count = sum(each.source == peer.fingerprint for each in await self._means.held.held())
            if count >= peer.limits.vms:
                raise TooManyReplicas(f"{peer.name} may have {peer.limits.vms} VMs here", value=count)
            return
        await _require_no_points(self._means, vm)


async def checked(means: Means, folder: Path) -> tuple[Manifest, ReplicaPeer]:
    """A seed that a paired source made for this host. Raises BadSeed."""
    manifest, said, signature = await asyncio.to_thread(read_manifest, folder)
    peer = await means.peers.of(manifest.source, PeerRole.SOURCE)
    if peer is None or manifest.receiver != means.identity.fingerprint:
        raise BadSeed(
            "that seed was made for another host" if peer else "that seed is of a host that is not paired",
            value=manifest.receiver if peer else manifest.source,
            cure="Pair the hosts first, and make the seed for this one.",
        )
    require_signed(said, signature, peer.certificate)
    return manifest, peer


def procedures(means: Means, find: Find) -> list[Procedure]:
    def exported(job: Job) -> dict[str, Any]:
        return {"vm": job.subject, "folder": job.params["folder"]}

    def placed(job: Job) -> dict[str, Any]:
        return {"replica": job.notes["replica"]}

    return [
        Procedure(EXPORT, (CopyDisks(means.rooms, find, shared=True), _Pack(means)), exported),
        Procedure(IMPORT, (_Unpack(means), _Place(means)), placed),
        Procedure(FROM_VM, (CopyDisks(means.rooms, find), _Place(means)), placed),
    ]


class _OfSeed:
    title = ""
    weight = 5.0

    def __init__(self, means: Means) -> None:
        self._means = means

    def folder(self, job: Job) -> Path:
        return operation_folder(self._means.rooms.state.scratch, job.id)

    async def undo(self, job: Job) -> None:
        await asyncio.to_thread(remove_tree, self.folder(job))


class _Pack(_OfSeed):
    title = "seal them onto the medium"

    async def do(self, job: Job) -> None:
        means, peer = self._means, await self._means.peers.get(job.params["peer"])
        record = await means.rooms.records.get(job.params["vm"])
        key, seed = secrets.token_bytes(KEY_BYTES), job.params["seed"]
        manifest = Manifest(
            seed=seed,
            vm=record.id,
            name=record.name,
            source=means.identity.fingerprint,
            receiver=peer.fingerprint,
            disks=tuple(SeedDisk(id=disk.id, size=disk.size) for disk in record.spec.disks),
            key=RecipientLock.of_pem(peer.certificate.encode()).wrap(key, seed.encode()),
        )
        target, base = Path(job.params["folder"]), self.folder(job) / "replica" / "base"

        def pack() -> None:
            _clear(target)
            for number, disk in enumerate(manifest.disks):
                with (base / disk.id).open("rb") as source, (target / f"{number}.blocks").open("xb") as out:
                    for done in pack_disk(source, disk.size, number, key, out):
                        job.progress((number + done / disk.size) / len(manifest.disks))
                    _sync(out)
            write_manifest(target, manifest, means.identity.key.read_bytes())
            remove_tree(self.folder(job))

        await asyncio.to_thread(pack)

    async def undo(self, job: Job) -> None:
        await super().undo(job)
        await asyncio.to_thread(_clear, Path(job.params["folder"]))


class _Unpack(_OfSeed):
    title = "unseal the disks"

    async def do(self, job: Job) -> None:
        means, folder = self._means, Path(job.params["folder"])
        manifest, _ = await checked(means, folder)
        if manifest.vm != job.params["source_vm"]:
            raise BadSeed("the folder holds another seed than it did", value=manifest.vm)
        opener = RecipientOpener.of_pem(await asyncio.to_thread(means.identity.key.read_bytes))
        key = opener.unwrap(manifest.key, manifest.seed.encode())
        base = self.folder(job) / "replica" / "base"

        def unpack() -> None:
            emptied(base)
            for number, disk in enumerate(manifest.disks):
                fd = os.open(base / disk.id, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    with open_part(folder, number) as source:
                        for done in unpack_disk(source, disk.size, number, key, fd):
                            job.progress((number + done / disk.size) / len(manifest.disks))
                finally:
                    os.close(fd)

        await asyncio.to_thread(unpack)


class _Place(_OfSeed):
    title = "make them the base of a replica"
    weight = 0.2

    async def do(self, job: Job) -> None:
        means, folder = self._means, self.folder(job)
        peer = await means.peers.of(job.params["peer"], PeerRole.SOURCE)
        if peer is None:
            raise PeerNotFound("the source is paired no more", value=job.params["peer"])
        name = job.params.get("name", job.subject)
        if (folder / "replica").exists():  # else it was placed before the daemon was killed
            await _require_no_points(means, job.params["source_vm"])
        held = await means.held.adopt(job.params["source_vm"], name, peer)
        job.notes["replica"] = held.name
        await asyncio.to_thread(private, folder / "replica")
        await asyncio.to_thread(means.store.place, held.name, folder / "replica")
        await asyncio.to_thread(remove_tree, folder)


async def _require_no_points(means: Means, vm: str) -> None:
    """What came over the link is not overwritten. Raises ReplicaExists."""
    held = await means.held.of_vm(vm)
    with contextlib.suppress(ReplicaNotFound):
        if held is not None and (await asyncio.to_thread(means.store.replica, held.name)).points():
            raise ReplicaExists(
                f"replica {held.name!r} has points already",
                value=held.name,
                cure="Nothing is to be seeded; or remove it first (`holdfast replica remove`).",
            )


def _require_empty(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = [each.name for each in folder.iterdir()]
    except OSError as error:
        raise SeedFolderUnusable(
            f"{folder} cannot be written to: {error.strerror}",
            value=str(folder),
            cure="Name a folder on the medium, as the host sees it.",
        ) from error
    if found:
        raise SeedFolderUnusable(
            f"{folder} is not empty", value=str(folder), cure="Name a new folder on the medium."
        )


def _clear(folder: Path) -> None:
    """Of what an earlier run wrote, the description first."""
    for path in [folder / MANIFEST, *folder.glob("*.blocks"), folder / "seed.sig"]:
        path.unlink(missing_ok=True)
    if folder.exists():
        sync_folder(folder)


def _part_bytes(folder: Path, number: int) -> int:
    with open_part(folder, number) as part:
        return os.fstat(part.fileno()).st_size


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
