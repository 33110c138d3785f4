"""One disk of a source into one volume: straight out of its archive, checked while its bytes flow by.

    streamOptimized VMDK ──▶ stream_work ──▶ volume      into a file: on all CPUs, read once, resumable
                                 └─────────▶ checksum
    any other ──▶ qemu-img ──▶ volume                    reached in place
        └───────▶ checksum                               at the same time

The volume gets its name only once both have ended well: a disk that has its name is done and true.
"""

import asyncio
import os
import threading
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from holdfast.host.processes import Identity, Processes
from holdfast.host.space import NoSpace, free_space
from holdfast.host.threads import stoppable
from holdfast.spec.attachment import BlockPlace, FilePlace, Place
from holdfast.spec.errors import InvalidInput
from holdfast.spec.image import ImageKind
from holdfast.spec.units import KIB, MIB, format_size
from holdfast.spec.vm import Disk, VolumeFormat
from holdfast.storage.appliances.claims import data_claimed, most_held
from holdfast.storage.appliances.exposure import exposed, socket_name
from holdfast.storage.appliances.manifest import Digest
from holdfast.storage.appliances.source import HeldFile
from holdfast.storage.formats import vmdk
from holdfast.storage.formats.reading import MAX_DISK, SECTOR, Reader, damaged
from holdfast.storage.formats.refusals import DiskHoldsMoreThanPlanned
from holdfast.storage.formats.vmdk_stream import is_stream
from holdfast.storage.inspect import inspect_reader
from holdfast.storage.qemu_img import Progress
from holdfast.storage.stream_to_volume import Part, Unpacked, stream_to_volume
from holdfast.storage.volume_content import fill_volume

_CHUNK = 4 * MIB
_PACKED_CHUNK = 256 * KIB
_SMALLEST_MEMBER = 4 * KIB
"""Bytes that the members of a gzip file have on average at least: each takes time, an empty one too."""
_RESERVE = 512 * MIB
"""Bytes of the file system that are left to others."""


class DiskExpandsAbsurdly(InvalidInput):
    id = "disk-expands-absurdly"


class GzipDamaged(InvalidInput):
    id = "gzip-damaged"


@dataclass(frozen=True)
class DiskContent:
    """What a disk's file turned out to be."""

    format: str
    """QEMU's name; `vpc` is VHD."""
    size: int
    """Bytes that the guest sees."""
    data: int | None = None
    """Bytes that its volume may come to hold, as `claims.data_claimed` counted them; None: any."""


def examine(held: HeldFile) -> DiskContent:
    """By its own headers, which are believed rather than any description; blocks for some ms.

    Raises what `inspect` raises.
    """
    with Reader.within(held.fd, held.offset, held.size, held.name) as reader:
        found = inspect_reader(reader, ImageKind.DISK)
    return DiskContent(found.format, found.virtual_size)


def peek_gzip(held: HeldFile) -> DiskContent | None:
    """What a compressed file holds, by its head; None where only unpacking tells. Raises GzipDamaged."""
    try:
        head = zlib.decompressobj(31).decompress(os.pread(held.fd, 64 * 1024, held.offset), 4096)
    except zlib.error as error:
        raise _bad_gzip(held) from error
    if head.startswith(vmdk.MAGIC) and len(head) >= 20:
        sectors = int.from_bytes(head[12:20], "little")
        return DiskContent("vmdk", min(sectors * SECTOR, MAX_DISK))
    return None


def most_written(held: HeldFile, virtual_size: int, data: int | None = None) -> int:
    """Bytes that the volume of a disk may come to: its data and tables, or what its file can honestly hold.

    `data`: bytes, by the file's own tables; None: all that the disk shows.
    """
    tables = virtual_size // 512 + 64 * MIB
    return min((virtual_size if data is None else data) + tables, most_held(held.size))


@dataclass(frozen=True)
class Bringing:
    """What it takes to bring disks of one operation."""

    processes: Processes
    sockets: Path
    """A folder with a short path that the converting user may pass through."""
    identity: Identity | None
    owner: str

    async def bring(
        self,
        held: HeldFile,
        content: DiskContent,
        digest: Digest | None,
        target: Place,
        disk: Disk,
        progress: Progress,
    ) -> Unpacked | None:
        """Make `target` the volume of `disk`, which is not smaller than its content.

        A stream that an interrupted run had begun in `target` is gone on with, and what came of it is
        returned; anything else in `target` is replaced. On a failure it may hold what is no disk.

        Raises:
            ManifestMismatch: the bytes are not those of the manifest.
            NoSpace, DiskExpandsAbsurdly, ConversionFailed: it could not be made.
            and what `inspect` raises: the converter made something else than a disk of that size.
        """
        if isinstance(target, FilePlace) and disk.format is VolumeFormat.QCOW2 and _is_stream(held):
            done = await self._stream(held, digest, target, disk, progress)
        else:
            done = None
            async with asyncio.TaskGroup() as group:
                if digest is not None:
                    group.create_task(stoppable(partial(_verify, held, digest)))
                group.create_task(self._convert(held, content, target, disk, progress))
        if disk.format is VolumeFormat.QCOW2 and isinstance(target, FilePlace | BlockPlace):
            await asyncio.to_thread(_require_disk, target, content, disk)
        return done

    async def _stream(
        self, held: HeldFile, digest: Digest | None, target: FilePlace, disk: Disk, progress: Progress
    ) -> Unpacked:
        largest = most_written(held, disk.size)
        try:
            done = await stream_to_volume(
                self.processes,
                Part(held.fd, held.offset, held.size, held.name),
                target.path,
                volume_size=disk.size,
                largest=largest,
                owner=self.owner,
                identity=self.identity,
                progress=progress,
                algorithms=(digest.algorithm.lower(),) if digest else (),
            )
        except DiskHoldsMoreThanPlanned as error:
            raise _expands(held, largest) from error
        if digest is not None:
            digest.require(done.digests[digest.algorithm.lower()], held.name)
        return done

    async def unpack(
        self, held: HeldFile, digest: Digest | None, target: Path, largest: int, progress: Progress
    ) -> None:
        """Unpack a file that is compressed as a whole (RFC 1952): nothing within it can be reached in place.

        Raises:
            GzipDamaged: it is none, or is cut off.
            DiskExpandsAbsurdly: it holds more than `largest` bytes.
            ManifestMismatch, NoSpace
        """
        try:
            async with asyncio.TaskGroup() as group:
                if digest is not None:
                    group.create_task(stoppable(partial(_verify, held, digest)))
                group.create_task(stoppable(partial(_inflate, held, target, largest, progress)))
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    async def claimed(self, held: HeldFile, content: DiskContent) -> int:
        """As `claims.data_claimed`."""
        return await data_claimed(
            self.processes,
            held,
            content.format,
            content.size,
            sockets=self.sockets,
            owner=self.owner,
            identity=self.identity,
        )

    async def _convert(
        self, held: HeldFile, content: DiskContent, target: Place, disk: Disk, progress: Progress
    ) -> None:
        largest = most_written(held, disk.size, content.data)
        has_room = isinstance(target, FilePlace) and free_space(target.path.parent)[0] - _RESERVE > largest

        async def use(node: dict[str, Any]) -> None:
            source = {"driver": content.format, "file": node}
            await fill_volume(
                self.processes,
                source | ({"backing": None} if content.format == "qcow2" else {}),
                target,
                disk.size,
                disk.format,
                largest=largest,
                owner=self.owner,
                identity=self.identity,
                progress=progress,
            )

        path = self.sockets / socket_name()
        try:
            await exposed(self.processes, held, path, use, owner=self.owner, identity=self.identity)
        except NoSpace as error:
            if has_room and "No space left" not in str(error.detail.get("log")):
                raise _expands(held, largest) from error
            raise


def _is_stream(held: HeldFile) -> bool:
    with Reader.within(held.fd, held.offset, held.size, held.name) as reader:
        return is_stream(reader)


def _require_disk(place: FilePlace | BlockPlace, content: DiskContent, disk: Disk) -> None:
    """The converter read a foreign file: what it wrote is looked at as if it were one too."""
    follow = 0 if isinstance(place, BlockPlace) else os.O_NOFOLLOW  # names of volumes are links in /dev
    fd = os.open(place.path, os.O_RDONLY | follow | os.O_CLOEXEC)
    try:
        with Reader.within(fd, 0, os.lseek(fd, 0, os.SEEK_END), place.path.name) as reader:
            made = inspect_reader(reader, ImageKind.DISK)
    finally:
        os.close(fd)
    if (made.format, made.virtual_size) != ("qcow2", disk.size):
        raise damaged(content.format, f"a disk of {made.virtual_size} bytes came of {content.size}")


def _verify(held: HeldFile, digest: Digest, stop: threading.Event) -> None:
    """In a thread beside the conversion: what one of them read the other finds in the page cache."""
    hasher = digest.begin()
    at, end = held.offset, held.offset + held.size
    while at < end and not stop.is_set():
        chunk = os.pread(held.fd, min(_CHUNK, end - at), at)
        if not chunk:
            break
        hasher.update(chunk)
        at += len(chunk)
    if not stop.is_set():
        digest.require(hasher.hexdigest(), held.name)


def _inflate(held: HeldFile, target: Path, largest: int, progress: Progress, stop: threading.Event) -> None:
    packer = zlib.decompressobj(31)
    at, end, written = held.offset, held.offset + held.size, 0
    members = 1
    with target.open("wb") as file:
        while at < end and not stop.is_set():
            chunk = os.pread(held.fd, min(_PACKED_CHUNK, end - at), at)
            if not chunk:
                break
            at += len(chunk)
            # A file may have several members, and zeros behind them.
            while chunk := chunk.lstrip(b"\0") if packer.eof else chunk:
                if packer.eof:
                    packer, members = zlib.decompressobj(31), members + 1
                    if members > 1 + held.size // _SMALLEST_MEMBER:
                        raise _bad_gzip(held)
                try:
                    data = packer.decompress(chunk, _CHUNK)
                except zlib.error as error:
                    raise _bad_gzip(held) from error
                chunk = packer.unused_data if packer.eof else packer.unconsumed_tail
                written += len(data)
                if written > largest:
                    raise _expands(held, largest)
                if free_space(target.parent)[0] < _RESERVE + len(data):
                    raise NoSpace(
                        f"no room is left at {target.parent} to unpack {held.name!r}",
                        value=str(target.parent),
                        cure="Free some space there.",
                    )
                file.write(data)
            progress((at - held.offset) / held.size, "unpacking")
    if not packer.eof and not stop.is_set():
        raise _bad_gzip(held)


def _bad_gzip(held: HeldFile) -> GzipDamaged:
    return GzipDamaged(
        f"{held.name!r} is no whole gzip file", value=held.name, cure="Copy or download the source again."
    )


def _expands(held: HeldFile, largest: int) -> DiskExpandsAbsurdly:
    return DiskExpandsAbsurdly(
        f"{held.name!r} has {format_size(held.size)} and holds more than {format_size(largest)}",
        value=held.name,
        cure="No real disk packs so well. If you trust it, convert it where it was made: `qemu-img convert`.",
    )
