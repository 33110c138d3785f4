"""Whether UEFI could start from a disk of a source, found out before anything of it is converted.

Of a disk in whatever format only the partition table, the EFI system partitions and what leads to an
initial RAM disk are taken out, by qemu-img as a user without rights, into scratch files; they are read there
by our own readers.
"""

import asyncio
import contextlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.host.processes import Identity, Limits, Processes
from holdfast.spec.errors import HoldfastError
from holdfast.spec.ids import new_id
from holdfast.spec.units import GIB, MIB
from holdfast.storage.appliances.driver_look import (
    NEEDED,
    DriverLook,
    Drivers,
    Kernel,
    judged,
    look_into,
    newest_kernel,
)
from holdfast.storage.appliances.exposure import exposed, socket_name
from holdfast.storage.appliances.source import HeldFile
from holdfast.storage.formats.fat import Fat, NotFat
from holdfast.storage.formats.initramfs import ModuleSearch, NotInitramfs
from holdfast.storage.formats.partitions import SECTOR, Partition, partitions

_TABLE = MIB
_LARGEST_PARTITION = GIB
_MOST_PARTITIONS = 2
_FALLBACK = "EFI\\BOOT\\BOOTX64.EFI"
"""UEFI specification, 3.5.1.1: what starts where no boot entry leads elsewhere."""
_WINDOWS = "EFI\\Microsoft\\Boot\\bootmgfw.efi"
_VENDORS = (
    _WINDOWS,
    *(
        f"EFI\\{name}\\{file}"
        for name in (
            "debian",
            "ubuntu",
            "fedora",
            "centos",
            "redhat",
            "rocky",
            "almalinux",
            "opensuse",
            "sles",
        )
        for file in ("shimx64.efi", "shim.efi", "grubx64.efi")
    ),
)
_LARGEST_LOADER = 192 * MIB
_CPU_SECONDS = 120
_UNPACKING_SECONDS = 60.0
_MOST_FETCHES, _MOST_RUNS = 96, 256
"""Parts of a disk taken out to find a kernel, and those of its RAM disk; each takes a tenth of a second."""


@dataclass(frozen=True)
class BootLook:
    """What was found on a disk."""

    partitioned: bool
    system_partition: bool
    """It has an EFI system partition."""
    fallback: bool
    """With the loader that UEFI starts without a boot entry."""
    vendor: str | None = None
    """Path of a loader that only a boot entry leads to."""
    drivers: DriverLook | None = None
    """None: it is a disk of Windows, or was not looked at."""

    @property
    def windows(self) -> bool:
        return self.vendor == _WINDOWS


class _NotAtHand(Exception):
    """A part of a disk is to be taken out first."""

    def __init__(self, offset: int, length: int) -> None:
        super().__init__(offset, length)
        self.offset, self.length = offset, length


class _Pieces:
    """A disk of which some parts are at hand; the rest reads as zeros, or raises _NotAtHand if `strict`."""

    def __init__(self, size: int, strict: bool = False) -> None:
        self.size = size
        self._strict = strict
        self._pieces: list[tuple[int, Path, int]] = []

    def add(self, start: int, file: Path) -> None:
        self._pieces.append((start, file, file.stat().st_size))

    def read(self, offset: int, length: int) -> bytes:
        for start, file, size in self._pieces:
            if start <= offset < start + size and not (self._strict and offset + length > start + size):
                with file.open("rb") as opened:
                    opened.seek(offset - start)
                    return opened.read(min(length, start + size - offset)).ljust(length, b"\0")
        if self._strict and offset < self.size:
            raise _NotAtHand(offset, length)
        return bytes(length)


class BootLooker:
    """Looks at disks, with files in `folder` and `sockets` that are gone afterwards.

    Others may pass through both; `sockets` has a short path.
    """

    def __init__(
        self, processes: Processes, folder: Path, sockets: Path, identity: Identity | None, owner: str
    ) -> None:
        self._processes = processes
        self._folder = folder
        self._sockets = sockets
        self._identity = identity
        self._owner = owner

    async def look(self, held: HeldFile, format: str, size: int) -> BootLook | None:
        """None where its content cannot be read: that is said by the conversion, if it is true.

        Args:
            format: QEMU's name.
            size: bytes that the guest sees.
        """
        stem = self._folder / f"look-{new_id()[:8]}"
        disk = _Pieces(size)
        made: list[Path] = []

        async def work(node: dict[str, Any]) -> BootLook:
            described = {"driver": format, "file": node, **({"backing": None} if format == "qcow2" else {})}
            table = await self._take(described, 0, min(_TABLE, size), stem.with_suffix(".table"), made)
            disk.add(0, table)
            found = await asyncio.to_thread(partitions, disk)
            systems = [part for part in found if part.system and part.start + part.size <= size]
            looks = [BootLook(bool(found), False, False)]
            for number, part in enumerate(systems[:_MOST_PARTITIONS]):
                length = min(part.size, _LARGEST_PARTITION)
                file = await self._take(described, part.start, length, stem.with_suffix(f".{number}"), made)
                looks.append(await asyncio.to_thread(_loaders, file, part, length))
            best = max(looks, key=lambda each: (each.fallback, bool(each.vendor), each.system_partition))
            if best.windows:
                return best
            return replace(best, drivers=await self._drivers(described, found, size, stem, made))

        try:
            path = self._sockets / socket_name()
            return await exposed(
                self._processes, held, path, work, owner=self._owner, identity=self._identity
            )
        except (HoldfastError, OSError):
            return None
        finally:
            for file in made:
                file.unlink(missing_ok=True)

    async def _drivers(
        self,
        described: dict[str, Any],
        found: tuple[Partition, ...],
        size: int,
        stem: Path,
        made: list[Path],
    ) -> DriverLook:
        """What Linux would need to find its root; never an error, since it is not needed to import."""
        disk = _Pieces(size // SECTOR * SECTOR, strict=True)
        try:
            kernel = await self._kernel(described, disk, found, stem, made)
            if kernel is None:
                return DriverLook(
                    Drivers.UNKNOWN, "no file system that can be read here (ext4, XFS) has a kernel of Linux"
                )
            if not kernel.runs:
                return judged(kernel, set(), whole=True)
            if len(kernel.runs) > _MOST_RUNS:
                return DriverLook(Drivers.UNKNOWN, f"{kernel.initramfs!r} lies in too many pieces")
            whole, packed = stem.with_suffix(".initramfs"), stem.with_suffix(".packed")
            for file in (whole, packed):
                made.append(file)
                file.touch(mode=0o600)
            for at, length in kernel.runs:
                run = stem.with_suffix(".run")
                part = await self._take(described, at, length, run, made, True) if at >= 0 else None
                await asyncio.to_thread(_append, whole, part, length)
            search = ModuleSearch(NEEDED)
            begun = await asyncio.to_thread(look_into, whole, packed, search)
            read = begun.compression is None or await self._unpack(begun.compression, packed, search)
            return judged(kernel, search.found, read)
        except (HoldfastError, OSError, NotInitramfs) as error:
            return DriverLook(Drivers.UNKNOWN, f"its files could not be read: {str(error)[:200]}")

    async def _kernel(
        self,
        described: dict[str, Any],
        disk: _Pieces,
        found: tuple[Partition, ...],
        stem: Path,
        made: list[Path],
    ) -> Kernel | None:
        """The reader begins anew with each part that it did not have: it takes milliseconds."""
        for number in range(_MOST_FETCHES):
            try:
                return await asyncio.to_thread(newest_kernel, disk, found)
            except _NotAtHand as missing:
                start = missing.offset // MIB * MIB
                length = min(-(-(missing.offset + missing.length) // MIB) * MIB, disk.size) - start
                target = stem.with_suffix(f".part{number}")
                disk.add(start, await self._take(described, start, length, target, made))
        raise OSError("too much would have to be read")

    async def _unpack(self, program: str, packed: Path, search: ModuleSearch) -> bool:
        """Have a program unpack something for `search`. Returns whether it could."""
        if self._identity:
            os.chown(packed, self._identity.uid, self._identity.gid)
        done = await self._processes.run(
            [program, "-d", "-c", "-q", str(packed)],
            owner=self._owner,
            identity=self._identity,
            limits=Limits(GIB, _CPU_SECONDS, 0, 64),
            timeout=_UNPACKING_SECONDS,
            on_stdout=search.feed,
        )
        return done.returncode == 0

    async def _take(
        self,
        described: dict[str, Any],
        start: int,
        length: int,
        target: Path,
        made: list[Path],
        more: bool = False,
    ) -> Path:
        """Some bytes of a disk as a sparse file. Raises OSError where it cannot be read.

        `more`: whole sectors that hold all of them, rather than only those that are whole.
        """
        length = -(-length // SECTOR) * SECTOR if more else length // SECTOR * SECTOR
        node = {"driver": "raw", "offset": start, "size": length, "file": described}
        made.append(target)
        target.touch(mode=0o600)
        os.truncate(target, length)
        if self._identity:
            os.chown(target, self._identity.uid, self._identity.gid)
        done = await self._processes.run(
            [
                "qemu-img",
                "convert",
                "-n",
                "--target-is-zero",
                "-O",
                "raw",
                f"json:{json.dumps(node)}",
                str(target),
            ],
            owner=self._owner,
            identity=self._identity,
            limits=Limits(4 * GIB, _CPU_SECONDS, 2 * GIB, 64),
        )
        if done.returncode:
            raise OSError(done.stderr.decode(errors="replace")[-300:])
        return target


def _loaders(file: Path, part: Partition, length: int) -> BootLook:
    disk = _Pieces(length)
    disk.add(0, file)
    fallback, vendor = False, None
    with contextlib.suppress(NotFat):
        fat = Fat(disk, 0, part.size)
        fallback = _has(fat, _FALLBACK)
        vendor = next((path for path in _VENDORS if _has(fat, path)), None)
    return BootLook(True, True, fallback, vendor)


def _append(whole: Path, part: Path | None, length: int) -> None:
    """The first bytes of a part, or zeros, behind what is there."""
    size = whole.stat().st_size
    if part is not None:
        with whole.open("ab") as target, part.open("rb") as source:
            shutil.copyfileobj(source, target, MIB)
        part.unlink()  # the next one begins with an empty file
    os.truncate(whole, size + length)


def _has(fat: Fat, path: str) -> bool:
    try:
        return bool(fat.read(path, _LARGEST_LOADER))
    except NotFat:
        return False
