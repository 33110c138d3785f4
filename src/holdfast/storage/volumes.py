"""Volumes of VMs' disks, in whatever pool: thin over an image or a replica, copies, blank, cloned, layered.

Each is made as a draft and published once whole, so what has a volume's name is a volume. QEMU gets
the chain from `chain`; the backing name in a header is for people who look with qemu-img.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Protocol

from holdfast.host.file_locks import is_locked
from holdfast.host.files import sync_folder
from holdfast.host.processes import Identity, Processes
from holdfast.spec.attachment import BlockPlace, FilePlace, Layer, Place, WindowPlace
from holdfast.spec.disk_requests import own_layers
from holdfast.spec.errors import Conflict, HoldfastError
from holdfast.spec.pool import PoolHealth
from holdfast.spec.vm import Disk, ReplicaOrigin, VolumeFormat
from holdfast.storage.images import ImageStore
from holdfast.storage.pools.book import Pools, ids_of
from holdfast.storage.pools.pool import Pool, VolumeId, VolumesInTheWay, require_room
from holdfast.storage.pools.rbd import keys_of
from holdfast.storage.qemu_img import Progress
from holdfast.storage.volume_content import content_length, copy_bytes, flatten, make_volume, resize_volume

_LAYER = re.compile(rf"([a-z0-9-]+)\.({'|'.join(VolumeFormat)})", re.ASCII)
_RELEASE_SECONDS = 5.0
_RELEASE_LOOK = 0.02  # seconds; nothing reports that a lock is let go of


class VolumeMissing(Conflict):
    id = "volume-missing"


class ImageChainBroken(Conflict):
    id = "image-chain-broken"


class VolumeShrunk(Conflict):
    id = "volume-shrunk"


class OriginMissing(Conflict):
    id = "volume-origin-missing"


class Origins(Protocol):
    """What disks stand on that are thin over a replica's opened point."""

    def layers(self, origin: ReplicaOrigin, disk: str) -> tuple[Layer, ...]:
        """Top first, named after `disk`; they are read only. Raises OriginMissing."""
        ...

    def grant(self, origin: ReplicaOrigin, identity: Identity | None) -> None:
        """Let `identity` read them, and no other VM. Raises OriginMissing, OSError."""
        ...


class NoOrigins:
    """Where no replicas are held."""

    def layers(self, origin: ReplicaOrigin, disk: str) -> tuple[Layer, ...]:
        raise origin_missing(origin)

    def grant(self, origin: ReplicaOrigin, identity: Identity | None) -> None:
        raise origin_missing(origin)


def origin_missing(origin: ReplicaOrigin) -> OriginMissing:
    return OriginMissing(
        f"the point of replica {origin.replica!r} that a disk stands on is not open any more",
        value=origin.token,
        cure="The disk cannot be used without it; put the replica's folder back from a backup.",
    )


class Volumes:
    """Owner of the volumes of one daemon; a VM's owner says when."""

    def __init__(
        self, images: ImageStore, pools: Pools, processes: Processes, origins: Origins | None = None
    ) -> None:
        self._images = images
        self._pools = pools
        self._processes = processes
        self._origins = origins or NoOrigins()

    async def create(
        self,
        vm_name: str,
        disk: Disk,
        *,
        copy_of: str | None,
        identity: Identity | None,
        operation: str,
        progress: Progress,
    ) -> None:
        """Make a disk: a whole copy of the image digest `copy_of`, thin over `disk.image`, or blank.

        Thin over an origin it names nothing in its header. Run again it begins anew and replaces what was
        there.

        Raises:
            ImageNotFound: the image is not in the store.
            OriginMissing: what it stands on is not open.
            PoolNotFound, PoolVanished: its pool is not there.
            NoSpace, ConversionFailed: it could not be made; nothing is left behind.
        """
        owner, pool, volume = f"operation:{operation}", self._pools.of(disk.pool), ids_of(vm_name, disk)[0]

        async def fill(draft: Place) -> None:
            if copy_of is None:
                below = FilePlace(path=await self._images.path(disk.image)) if disk.image else None
                await make_volume(self._processes, draft, disk.size, disk.format, owner=owner, below=below)
                return
            layers = (Layer.of_file(await self._images.path(copy_of), "qcow2"),)
            await flatten(
                self._processes,
                layers,
                draft,
                disk.size,
                disk.format,
                owner=owner,
                identity=identity,
                progress=progress,
            )

        await self._made(pool, volume, disk.size, identity, fill)
        await self._grant_origin(disk, identity)

    async def _made(
        self,
        pool: Pool,
        volume: VolumeId,
        size: int,
        identity: Identity | None,
        fill: Callable[[Place], Awaitable[None]],
    ) -> None:
        """A volume whose draft `fill` has filled; on failure nothing of it is left."""
        try:
            await fill(await pool.allocate(volume, size))
            await pool.publish(volume, identity)
        finally:
            await asyncio.shield(_discarded(pool, volume))

    async def put(
        self,
        vm_name: str,
        disk: Disk,
        write: Callable[[Place], Awaitable[None]],
        *,
        identity: Identity | None,
    ) -> None:
        """Make a disk by `write`, which is told where its volume is to be made.

        A disk that has its volume already is whole and stays. What an interrupted run left is given to
        `write` as it is, and is left again where this one is cancelled. Raises PoolNotFound, PoolVanished
        and what `write` raises; nothing is left behind then.
        """
        pool, volume = self._pools.of(disk.pool), ids_of(vm_name, disk)[0]
        if await pool.has(volume):
            return
        try:
            await write(await pool.left(volume) or await pool.allocate(volume, disk.size))
            await pool.publish(volume, identity)
        except Exception:
            await asyncio.shield(_discarded(pool, volume))
            raise

    async def create_overlay(
        self, vm_name: str, disk: Disk, volume: str, *, identity: Identity | None, operation: str
    ) -> Layer:
        """Make an empty layer `volume` to lie on top of a disk's present ones; these are not opened.

        It is of the disk's size, and no part of the disk until a specification names it. The VM may
        run. Run again it replaces what was there.

        Raises:
            PoolVanished, NoSpace, ConversionFailed: it could not be made; nothing is left behind.
        """
        pool, target = self._pools.of(disk.pool), VolumeId(vm_name, volume)
        top = self.chain(vm_name, disk)[0]

        async def fill(draft: Place) -> None:
            await make_volume(
                self._processes,
                draft,
                disk.size,
                VolumeFormat.QCOW2,
                owner=f"operation:{operation}",
                below=top.place,
                below_format=top.format,
            )

        await self._made(pool, target, disk.size, identity, fill)
        return Layer(place=pool.place(target), format="qcow2", name=volume)

    async def copy_layer(
        self,
        vm_name: str,
        disk: Disk,
        volume: str,
        pool: str | None,
        *,
        name: str | None = None,
        identity: Identity | None,
        operation: str,
        progress: Progress,
    ) -> Layer:
        """Copy one layer of a disk, which nobody writes to, to another pool; `name`: under another name.

        What only shows through from below it does so in the copy; bitmaps are kept.

        Raises:
            VolumeMissing: it is not there.
            PoolNotFound, PoolVanished, NoSpace, ConversionFailed: nothing is left behind.
        """
        source = next(each for each in ids_of(vm_name, disk) if each.name == volume)
        before, after = self._pools.of(disk.pool), self._pools.of(pool)
        await self._require_volume(before, source, disk)
        target = VolumeId(vm_name, name or volume, source.format)
        await self._copied(before, source, after, target, disk.size, identity, operation, progress)
        return Layer(place=after.place(target), format=source.format.value, name=target.name)

    async def require_room(self, pool: str | None, room: int) -> None:
        """Pass where a pool is there and has `room` bytes. Raises PoolNotFound, PoolVanished, NoSpace."""
        await require_room(self._pools.of(pool), room)

    async def _copied(
        self,
        before: Pool,
        source: VolumeId,
        after: Pool,
        target: VolumeId,
        size: int,
        identity: Identity | None,
        operation: str,
        progress: Progress,
    ) -> None:
        place = before.place(source)
        try:
            if not await after.copy(place, target):
                owner = f"operation:{operation}"
                length = await content_length(self._processes, place, owner=owner)
                draft = await after.allocate(target, size, length)
                await copy_bytes(self._processes, place, draft, owner=owner, progress=progress)
            await after.publish(target, identity)
        finally:
            await asyncio.shield(_discarded(after, target))

    async def clone(
        self,
        source_vm: str,
        source_disk: Disk,
        vm_name: str,
        disk: Disk,
        *,
        identity: Identity | None,
        operation: str,
        progress: Progress,
    ) -> None:
        """Copy a disk of a VM that is not running: thin over the same image, or whole.

        Raises:
            VolumeMissing, ImageChainBroken: a layer of the source is missing.
            PoolNotFound, PoolVanished: a pool is not there.
            NoSpace, ConversionFailed: it could not be made; nothing is left behind.
        """
        await self.require(source_vm, source_disk)
        chain = self.chain(source_vm, source_disk)
        before, after = self._pools.of(source_disk.pool), self._pools.of(disk.pool)
        source, target = ids_of(source_vm, source_disk)[0], ids_of(vm_name, disk)[0]
        if len(chain) == len(self.chain(vm_name, disk)) and source.format is target.format:
            await self._copied(before, source, after, target, disk.size, identity, operation, progress)
            return
        reader = await asyncio.to_thread(_user_of, chain[0].place)

        async def fill(draft: Place) -> None:
            await flatten(
                self._processes,
                chain,
                draft,
                disk.size,
                disk.format,
                owner=f"operation:{operation}",
                identity=reader,
                progress=progress,
            )

        await self._made(after, target, disk.size, identity, fill)

    async def resize(self, vm_name: str, disk: Disk, size: int, *, operation: str) -> None:
        """Let the guest of a VM that is off see `size` bytes; nothing happens where it does.

        Raises:
            VolumeShrunk: it would lose what is at its end.
            VolumeMissing, PoolVanished, NoSpace, ConversionFailed: it is as it was.
        """
        if size < disk.size:
            raise VolumeShrunk(
                f"{disk.id} of VM {vm_name!r} has {disk.size} bytes; disks only grow",
                value=size,
                cure="Make a smaller disk, and copy what you need inside the guest.",
            )
        await self.require(vm_name, disk)
        await self.make_room(vm_name, disk, size)
        top = self.chain(vm_name, disk)[0]
        reader = await asyncio.to_thread(_user_of, top.place)
        await resize_volume(
            self._processes,
            top.place,
            size,
            VolumeFormat(top.format),
            owner=f"operation:{operation}",
            identity=reader,
        )

    async def make_room(self, vm_name: str, disk: Disk, size: int) -> None:
        """Before a disk grows to `size` bytes, whether its VM runs or not. Raises NoSpace, PoolVanished."""
        await self._pools.of(disk.pool).grow(ids_of(vm_name, disk)[0], size)

    async def grant(self, vm_name: str, disk: Disk, identity: Identity | None) -> None:
        """Before a start: `identity` may use every layer of a disk. Raises PoolVanished, OriginMissing."""
        for volume in ids_of(vm_name, disk):
            await self._pools.of(disk.pool).grant(volume, identity)
        await self._grant_origin(disk, identity)

    async def _grant_origin(self, disk: Disk, identity: Identity | None) -> None:
        if disk.origin is not None:
            await asyncio.to_thread(self._origins.grant, disk.origin, identity)

    async def secrets(self, vm_name: str, disk: Disk) -> dict[str, bytes]:
        """What QEMU must know to open a disk: secret objects by their ids. Raises CephFailed."""
        return await keys_of([layer.place for layer in self.chain(vm_name, disk)])

    def chain(self, vm_name: str, disk: Disk) -> tuple[Layer, ...]:
        """The layers of a disk, top first; a host's device that carries one is the only layer.

        Raises PoolNotFound, OriginMissing.
        """
        if disk.device is not None:
            return (Layer(place=BlockPlace(path=Path(disk.device)), format="raw", name=disk.id),)
        pool = self._pools.of(disk.pool)
        layers = [
            Layer(place=pool.place(each), format=each.format.value, name=each.name)
            for each in ids_of(vm_name, disk)
        ]
        if disk.image is not None:
            layers.append(Layer.of_file(self._images.content(disk.image), "qcow2", f"{disk.id}.image"))
        if disk.origin is not None:
            layers += self._origins.layers(disk.origin, disk.id)
        return tuple(layers)

    async def released(self, vm_name: str, disks: Iterable[Disk], limit: float = _RELEASE_SECONDS) -> None:
        """Return once no process holds the disks' locks any more, or after `limit` seconds.

        The kernel lets go of an ended QEMU's files a moment after its end where io_uring held them.
        """
        paths = [path for disk in disks for path in await self._lockable(vm_name, disk)]
        deadline = asyncio.get_running_loop().time() + limit
        while await asyncio.to_thread(lambda: any(is_locked(path) for path in paths)):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(_RELEASE_LOOK)

    async def _lockable(self, vm_name: str, disk: Disk) -> list[Path]:
        """The files that a machine has locked, as far as they can be asked now."""
        with contextlib.suppress(HoldfastError):
            pool = self._pools.of(disk.pool)
            if (await pool.state()).health is not PoolHealth.VANISHED:
                places = [pool.place(each) for each in ids_of(vm_name, disk)]
                return [place.path for place in places if isinstance(place, FilePlace)]
        return []

    async def require(self, vm_name: str, disk: Disk) -> None:
        """Pass where every layer of a disk is there.

        Raises:
            VolumeMissing: one of the VM's own is not; the value says where it should be.
            ImageChainBroken: the image below is not; the value is its path.
            OriginMissing: what it stands on is not open.
            PoolNotFound, PoolVanished: the pool is not there.
        """
        pool = self._pools.of(disk.pool)
        for volume in ids_of(vm_name, disk):
            await self._require_volume(pool, volume, disk)
        image = self._images.content(disk.image) if disk.image is not None else None
        if image is not None and not image.is_file():
            raise ImageChainBroken(
                f"{disk.id} of VM {vm_name!r} needs an image whose file is missing: {image}",
                value=str(image),
                cure="Import or pull that image again; its digest must be the same.",
            )
        if disk.origin is not None:
            for layer in await asyncio.to_thread(self._origins.layers, disk.origin, disk.id):
                if isinstance(layer.place, FilePlace | WindowPlace) and not layer.place.path.is_file():
                    raise origin_missing(disk.origin)

    @staticmethod
    async def _require_volume(pool: Pool, volume: VolumeId, disk: Disk) -> None:
        if not await pool.has(volume):
            place = pool.place(volume)
            raise VolumeMissing(
                f"a volume of {disk.id} of VM {volume.vm!r} is missing: {place}",
                value=str(place),
                cure="Put it back from a backup.",
            )

    async def stored_size(self, vm_name: str, disk: Disk) -> int:
        """Bytes of storage that are the VM's alone; a layer that is missing counts 0."""
        pool = self._pools.of(disk.pool)
        return sum([await pool.used(each) for each in ids_of(vm_name, disk)])

    async def require_free(self, vm_name: str, disks: Iterable[Disk]) -> None:
        """Pass where the pools of these disks hold nothing of a VM of that name, which is to be made.

        Raises VolumesInTheWay, PoolNotFound, PoolVanished.
        """
        for name in sorted({disk.pool for disk in disks if disk.pool is not None}):
            left = await self.listed(vm_name, name)
            if left:
                raise VolumesInTheWay(
                    f"the pool {name!r} already has volumes of a VM {vm_name!r}: {', '.join(left[:5])}",
                    value=vm_name,
                    cure="Move them away, or choose another name.",
                    detail={"pool": name},
                )

    async def rename(self, old: str, new: str, disks: Iterable[Disk]) -> None:
        """Carry the volumes of these disks over to a VM's new name; run again it completes that.

        Raises VolumesInTheWay, PoolNotFound, PoolVanished.
        """
        for name in sorted({disk.pool for disk in disks if disk.pool is not None}):
            await self._pools.of(name).rename(old, new)

    async def set_aside(self, vm_name: str, disk: Disk, label: str) -> str:
        """Keep the volumes of a disk that is the VM's no more, in a folder of their own; its path.

        Run again it completes what was begun.
        """
        pool = self._pools.of(disk.pool)
        places = [pool.place(each) for each in ids_of(vm_name, disk)]
        paths = [place.path for place in places if isinstance(place, FilePlace)]
        if not paths:
            return ", ".join(str(place) for place in places)
        folder = paths[0].parent / "kept" / f"{disk.id}-{label}"

        def carry() -> None:
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            for path in paths:
                if path.exists():
                    path.rename(folder / path.name)
            sync_folder(folder)

        await asyncio.to_thread(carry)
        return str(folder)

    async def delete(self, vm_name: str, disk: Disk) -> None:
        """Remove a disk's volumes; nothing happens where they are not there. Raises PoolVanished."""
        await self.delete_layers(vm_name, disk, own_layers(disk))

    async def delete_layers(self, vm_name: str, disk: Disk, volumes: Iterable[str]) -> None:
        """Remove volumes of a VM from the pool of `disk`, whichever of them are there."""
        pool = self._pools.of(disk.pool)
        for name in volumes:
            for format in VolumeFormat:
                await pool.remove(VolumeId(vm_name, name, format))

    async def layers_found(self, vm_name: str, pool: str | None) -> frozenset[str]:
        """Names of all volumes of a VM that are in a pool, also what no record knows. Raises PoolVanished."""
        found = [_LAYER.fullmatch(each) for each in await self.listed(vm_name, pool)]
        return frozenset(match[1] for match in found if match)

    async def layer_size(self, vm_name: str, disk: Disk, volume: str) -> int:
        """Bytes that one layer takes up; 0 where it is not there. Raises PoolVanished."""
        found = next(each for each in ids_of(vm_name, disk) if each.name == volume)
        return await self._pools.of(disk.pool).used(found)

    async def listed(self, vm_name: str, pool: str | None) -> list[str]:
        """Names of all that a pool holds of a VM, also what no record knows. Raises PoolVanished."""
        return await self._pools.of(pool).names(vm_name)


async def _discarded(pool: Pool, volume: VolumeId) -> None:
    # What cannot be reached cannot be cleared away; the next draft of that name replaces it.
    with contextlib.suppress(HoldfastError, OSError):
        await pool.discard(volume)


def _user_of(place: Place) -> Identity | None:
    """Who may read a VM's disk anyway: what a broken guest left in it is read with no other rights."""
    if not isinstance(place, FilePlace | BlockPlace):
        return None
    found = place.path.stat()
    if os.geteuid() != 0 or found.st_uid == 0:
        return None
    return Identity(found.st_uid, found.st_gid)
