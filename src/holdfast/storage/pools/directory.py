"""Volumes as files: `<root>/<VM name>/<volume>.qcow2` or `.raw`, 0600, the VM's own user's.

A pool's root holds a mark. Where a file system is mounted on the root and goes
away, so does the mark, and nothing is written to what lies beneath. The daemon's own pool (`local`)
is the folder of VMs, which has no mark and no other file system below it.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from holdfast.host.files import allocated, copy_sparse, sync_folder
from holdfast.host.processes import Identity
from holdfast.host.space import NoSpace
from holdfast.spec.attachment import FilePlace, Place
from holdfast.spec.pool import DirectoryPoolSpec, PoolHealth, PoolSpec
from holdfast.spec.vm import VolumeFormat
from holdfast.storage.pools.pool import (
    PoolState,
    VolumeId,
    VolumesInTheWay,
    state_of,
    vanished,
)
from holdfast.storage.pools.root import RootMark, check_root, read_mark, remove_mark

_PATIENCE = 5.0  # seconds; a file server that is gone never answers
_SILENT = f"it has not answered for {_PATIENCE:g} seconds"
_HANDS = 8
T = TypeVar("T")


class DirectoryPool:
    """Fits `Pool`."""

    spec: PoolSpec

    def __init__(self, name: str, spec: DirectoryPoolSpec, mark: RootMark | None, state: Path) -> None:
        """`mark` of None: the daemon's own pool. `state` is the daemon's folder."""
        self.name = name
        self.spec = spec
        self._mark = mark
        self._root = spec.path
        self._format = spec.format
        self._state = state
        # Threads of its own: those that hang in a dead file system take no other's place.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"pool {name}")
        self._hands = ThreadPoolExecutor(_HANDS, thread_name_prefix=f"pool {name}")
        self._asking: asyncio.Future[PoolState] | None = None

    @property
    def format(self) -> VolumeFormat:
        return self._format

    async def make(self) -> None:
        """Raises PoolPathUnusable, PoolPathNotEmpty, PoolPathTaken."""
        mark = self._mark
        if mark is None:
            return

        def take() -> None:
            check_root(self._root, self._state, mark.state)
            mark.write(self._root)

        await self._at_work(take)

    async def open(self) -> None:
        """Nothing: whoever mounts the file system does that."""

    async def unmake(self) -> None:
        if self._mark is not None:
            await self._require()
            await self._at_work(remove_mark, self._root)

    async def _at_work(self, work: Callable[..., T], *arguments: Any) -> T:
        """What changes the file system, in a thread of the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._hands, work, *arguments)

    async def _looked(self, work: Callable[..., T], *arguments: Any) -> T:
        """What only looks, not behind those at work. Raises PoolVanished."""
        await self._require()
        try:
            async with asyncio.timeout(_PATIENCE):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except TimeoutError as error:
            raise vanished(self.name, _SILENT) from error

    async def state(self) -> PoolState:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().run_in_executor(self._thread, self._look)
        try:
            async with asyncio.timeout(_PATIENCE):
                return await asyncio.shield(self._asking)
        except TimeoutError:
            return PoolState(PoolHealth.VANISHED, _SILENT)

    def _look(self) -> PoolState:
        try:
            if self._mark is not None and read_mark(self._root) != self._mark:
                return PoolState(PoolHealth.VANISHED, f"{self._root} is not what the pool was made on")
            found = os.statvfs(self._root)
        except OSError as error:
            return PoolState(PoolHealth.VANISHED, f"{self._root}: {error.strerror}")
        if found.f_flag & os.ST_RDONLY:
            return PoolState(PoolHealth.VANISHED, f"the file system of {self._root} is read-only")
        return state_of(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    async def _require(self) -> None:
        state = await self.state()
        if state.health is PoolHealth.VANISHED:
            raise vanished(self.name, state.reason)

    def _path(self, volume: VolumeId) -> Path:
        return self._root / volume.vm / f"{volume.name}.{volume.format}"

    def place(self, volume: VolumeId) -> Place:
        return FilePlace(path=self._path(volume), direct=self._mark is not None)

    def draft(self, volume: VolumeId) -> Place:
        return FilePlace(path=_part(self._path(volume)))

    async def allocate(self, volume: VolumeId, size: int, length: int = 0) -> Place:
        await self._begin(volume)
        return self.draft(volume)

    async def _begin(self, volume: VolumeId) -> Path:
        """The draft's path, with nothing there."""
        await self._require()
        part = _part(self._path(volume))

        def clear() -> None:
            if self._mark is not None and not part.parent.is_dir():
                part.parent.mkdir(mode=0o711)
                part.parent.chmod(0o711)  # the VM's user passes through; the daemon's umask is stricter
                sync_folder(self._root)
            part.unlink(missing_ok=True)

        try:
            await self._at_work(clear)
        except OSError as error:
            raise NoSpace(
                f"nothing can be made in the pool {self.name!r}: {error.strerror}",
                value=self.name,
                cure=f"Look at it with `holdfast pool show {self.name}`.",
            ) from error
        return part

    async def left(self, volume: VolumeId) -> Place | None:
        await self._require()
        part = _part(self._path(volume))
        there = await asyncio.to_thread(lambda: part.is_file() and not part.is_symlink())
        return self.draft(volume) if there else None

    async def copy(self, source: Place, volume: VolumeId) -> bool:
        if not isinstance(source, FilePlace):
            return False
        part = await self._begin(volume)
        await self._at_work(copy_sparse, source.path, part)
        return True

    async def grow(self, volume: VolumeId, size: int) -> None:
        """Nothing: files grow by themselves."""

    async def grant(self, volume: VolumeId, identity: Identity | None) -> None:
        """Nothing: files stay whose they are."""

    async def publish(self, volume: VolumeId, identity: Identity | None) -> None:
        await self._at_work(_settle, self._path(volume), identity)

    async def discard(self, volume: VolumeId) -> None:
        await self._require()
        await self._at_work(lambda: _part(self._path(volume)).unlink(missing_ok=True))

    async def remove(self, volume: VolumeId) -> None:
        await self._require()
        path = self._path(volume)

        def unlink() -> None:
            path.unlink(missing_ok=True)
            _part(path).unlink(missing_ok=True)
            if self._mark is not None:
                with contextlib.suppress(OSError):  # not there, or not the last one
                    path.parent.rmdir()

        await self._at_work(unlink)

    async def has(self, volume: VolumeId) -> bool:
        path = self._path(volume)
        return await self._looked(lambda: path.is_file() and not path.is_symlink())

    async def used(self, volume: VolumeId) -> int:
        return await self._looked(allocated, self._path(volume))

    async def names(self, vm: str) -> list[str]:
        return await self._looked(_listed, self._root / vm)

    async def rename(self, old: str, new: str) -> None:
        if self._mark is None:
            return  # the VM's own folder is renamed by the VM's owner
        await self._require()

        def carry() -> None:
            before, after = self._root / old, self._root / new
            if not before.is_dir():
                return
            if after.is_dir() and not after.samefile(before):
                if _listed(after):
                    raise VolumesInTheWay(
                        f"the pool {self.name!r} already has volumes of a VM {new!r}",
                        value=str(after),
                        cure="Move that folder away, or choose another name.",
                    )
                after.rmdir()
            before.rename(after)
            sync_folder(self._root)

        await self._at_work(carry)


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return []


def _settle(target: Path, identity: Identity | None) -> None:
    part = _part(target)
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
