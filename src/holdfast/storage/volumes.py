"""Volumes: the disk files in a VM's own folder, thin over an image, whole copies, or blank.

    vms/<VM name>/<volume>.qcow2     0600, the VM's own user's

Each is made under another name and renamed once whole, so what has the name is a disk. QEMU gets
the chain from `chain`; the backing name in a header is for people who look with qemu-img.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from holdfast.host.file_locks import is_locked
from holdfast.host.files import copy_sparse, sync_folder
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Identity, Processes
from holdfast.spec.attachment import Layer
from holdfast.spec.errors import Conflict
from holdfast.spec.vm import Disk
from holdfast.storage.convert import VOLUME_OPTIONS, flatten
from holdfast.storage.images import ImageStore
from holdfast.storage.qemu_img import Progress, qemu_img

_RELEASE_SECONDS = 5.0
_RELEASE_LOOK = 0.02  # seconds; nothing reports that a lock is let go of


class VolumeMissing(Conflict):
    id = "volume-missing"


class ImageChainBroken(Conflict):
    id = "image-chain-broken"


class Volumes:
    """Owner of the volumes of one state folder; a VM's owner says when."""

    def __init__(self, images: ImageStore, state: StateFolder, processes: Processes) -> None:
        self._images = images
        self._state = state
        self._processes = processes

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

        Run again it begins anew and replaces what was there.

        Raises:
            ImageNotFound: the image is not in the store.
            NoSpace, ConversionFailed: it could not be made; nothing is left behind.
        """
        target, owner = self._path(vm_name, disk), f"operation:{operation}"
        part = _part(target)
        try:
            if copy_of is not None:
                layers = (Layer(path=await self._images.path(copy_of), format="qcow2"),)
                await flatten(
                    self._processes,
                    layers,
                    part,
                    owner=owner,
                    identity=identity,
                    progress=progress,
                    virtual_size=disk.size,
                )
                await self._resize(part, disk.size, owner)
            else:
                await self._make(part, disk, owner)
            await asyncio.to_thread(_settle, part, target, identity)
        finally:
            part.unlink(missing_ok=True)

    async def put(
        self,
        vm_name: str,
        disk: Disk,
        write: Callable[[Path], Awaitable[int]],
        *,
        identity: Identity | None,
        operation: str,
    ) -> None:
        """Make a disk by `write`, which makes the qcow2 file it is told and returns the bytes a guest sees.

        A disk that has its file already is whole and stays. Raises what `write` raises, and nothing is
        left behind then.
        """
        target = self._path(vm_name, disk)
        if await asyncio.to_thread(target.is_file):
            return
        part = _part(target)
        try:
            size = await write(part)
            if size < disk.size:
                await self._resize(part, disk.size, f"operation:{operation}")
            await asyncio.to_thread(_settle, part, target, identity)
        finally:
            part.unlink(missing_ok=True)

    async def _make(self, part: Path, disk: Disk, owner: str) -> None:
        part.unlink(missing_ok=True)
        # -u: the image is not opened, so nothing in it is read with our rights.
        below = ["-u", "-b", str(await self._images.path(disk.image)), "-F", "qcow2"] if disk.image else []
        arguments = ["create", "-q", "-f", "qcow2", "-o", VOLUME_OPTIONS, *below, str(part), str(disk.size)]
        await qemu_img(self._processes, arguments, owner=owner, target=part)

    async def _resize(self, part: Path, size: int, owner: str) -> None:
        arguments = ["resize", "-q", "-f", "qcow2", str(part), str(size)]
        await qemu_img(self._processes, arguments, owner=owner, target=part)

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
            VolumeMissing, ImageChainBroken: a file of the source is missing.
            NoSpace, ConversionFailed: it could not be made; nothing is left behind.
        """
        await self.require(source_vm, source_disk)
        source, target = self._path(source_vm, source_disk), self._path(vm_name, disk)
        part = _part(target)
        try:
            if len(self.chain(source_vm, source_disk)) > len(self.chain(vm_name, disk)):
                await flatten(
                    self._processes,
                    self.chain(source_vm, source_disk),
                    part,
                    owner=f"operation:{operation}",
                    identity=await asyncio.to_thread(_user_of, source),
                    progress=progress,
                    virtual_size=disk.size,
                )
            else:
                await asyncio.to_thread(_copy, source, part)
            await asyncio.to_thread(_settle, part, target, identity)
        finally:
            part.unlink(missing_ok=True)

    def chain(self, vm_name: str, disk: Disk) -> tuple[Layer, ...]:
        """The files of a disk, top first."""
        own = (disk.volume, *disk.below)
        layers = [
            Layer(
                path=self._path(vm_name, disk, volume),
                format=disk.format.value if volume == own[-1] else "qcow2",
                name=volume,
            )
            for volume in own
        ]
        if disk.image is not None:
            image = self._images.content(disk.image)
            layers.append(Layer(path=image, format="qcow2", name=f"{disk.id}.image"))
        return tuple(layers)

    async def released(self, vm_name: str, disks: Iterable[Disk], limit: float = _RELEASE_SECONDS) -> None:
        """Return once no process holds the disks' locks any more, or after `limit` seconds.

        The kernel lets go of an ended QEMU's files a moment after its end where io_uring held them.
        """
        paths = [self._path(vm_name, disk) for disk in disks]
        deadline = asyncio.get_running_loop().time() + limit
        while await asyncio.to_thread(lambda: any(is_locked(path) for path in paths)):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(_RELEASE_LOOK)

    async def require(self, vm_name: str, disk: Disk) -> None:
        """Pass where every file of a disk is there.

        Raises:
            VolumeMissing: one of the VM's own files is not; the value is its path.
            ImageChainBroken: the image below is not; the value is its path.
        """
        chain = self.chain(vm_name, disk)
        own = 1 + len(disk.below)
        for layer in chain[:own]:
            if not layer.path.is_file():
                raise VolumeMissing(
                    f"a file of {disk.id} of VM {vm_name!r} is missing: {layer.path}",
                    value=str(layer.path),
                    cure="Put the file back from a backup.",
                )
        for layer in chain[own:]:
            if not layer.path.is_file():
                raise ImageChainBroken(
                    f"{disk.id} of VM {vm_name!r} needs an image whose file is missing: {layer.path}",
                    value=str(layer.path),
                    cure="Import or pull that image again; its digest must be the same.",
                )

    def stored_size(self, vm_name: str, disk: Disk) -> int:
        """Bytes on this host's disk that are the VM's alone; a file that is missing counts 0."""
        size = 0
        for volume in (disk.volume, *disk.below):
            with contextlib.suppress(FileNotFoundError):
                size += self._path(vm_name, disk, volume).stat().st_blocks * 512
        return size

    async def delete(self, vm_name: str, disk: Disk) -> None:
        """Remove a disk's files; nothing happens where they are not there."""
        paths = [self._path(vm_name, disk, volume) for volume in (disk.volume, *disk.below)]

        def remove() -> None:
            for path in paths:
                path.unlink(missing_ok=True)
                _part(path).unlink(missing_ok=True)

        await asyncio.to_thread(remove)

    def _path(self, vm_name: str, disk: Disk, volume: str | None = None) -> Path:
        """`volume` is one of the disk's; None: the one on top."""
        return self._state.vm(vm_name) / f"{volume or disk.volume}.qcow2"


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _copy(source: Path, part: Path) -> None:
    part.unlink(missing_ok=True)
    copy_sparse(source, part)


def _user_of(file: Path) -> Identity | None:
    """Who may read a VM's disk anyway: what a broken guest left in it is read with no other rights."""
    found = file.stat()
    if os.geteuid() != 0 or found.st_uid == 0:
        return None
    return Identity(found.st_uid, found.st_gid)


def _settle(part: Path, target: Path, identity: Identity | None) -> None:
    fd = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        if identity:
            os.fchown(fd, identity.uid, identity.gid)
        os.fsync(fd)
    finally:
        os.close(fd)
    part.replace(target)
    sync_folder(target.parent)
