"""From a streamOptimized VMDK, alone or inside an archive, straight to a volume.

The work is done by a process without rights (`stream_work`), on all CPUs. The target is no disk until it is
whole. After a crash the work goes on at its last durable mark, which stands in the target itself.
"""

import asyncio
import contextlib
import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from holdfast.host.files import sync_folder
from holdfast.host.processes import Identity, Processes
from holdfast.host.space import free_space
from holdfast.spec.errors import HoldfastError
from holdfast.spec.units import MIB
from holdfast.storage.confined import Confined, run_confined
from holdfast.storage.formats.refusals import DiskHoldsMoreThanPlanned
from holdfast.storage.qemu_img import Progress, no_room
from holdfast.storage.stream_work import Order

_RESERVE = 512 * MIB
"""Bytes of the file system that are left to the catalog and to running VMs."""
_FLOOR = 16 * MIB
"""Bytes that are tried whatever room there is."""


@dataclass(frozen=True)
class Part:
    """Where the VMDK lies: `size` bytes of an open file, from `offset` on."""

    fd: int
    offset: int
    size: int
    name: str
    """For people."""


@dataclass(frozen=True)
class Unpacked:
    digests: dict[str, str]
    """Of the whole VMDK, in hex, by the names that were asked for."""
    resumed_at: int
    """Bytes of the VMDK that an earlier run had done; 0 where this one began anew."""
    memory: int
    """Bytes that the process had at most."""


async def stream_to_volume(
    processes: Processes,
    source: Part,
    target: Path,
    *,
    volume_size: int,
    largest: int,
    owner: str,
    identity: Identity | None,
    progress: Progress,
    algorithms: tuple[str, ...] = (),
) -> Unpacked:
    """Make `target` a volume with the disk of a streamOptimized VMDK, durable and 0600.

    Where an earlier run over the same unchanged file was interrupted it goes on, and it is left to be
    gone on with when this one is cancelled.

    Args:
        volume_size: bytes that the guest will see, a multiple of 512. The VMDK's disk must fit.
        largest: bytes that `target` may have, however much the VMDK turns out to hold.
        identity: whom the process becomes that reads it.
        algorithms: digests wanted of the VMDK as it lies there, by hashlib's names.

    Raises:
        DiskLargerThanPlanned, DiskHoldsMoreThanPlanned: it is not what was planned.
        ImageTruncated, ImageDamaged and others: as `formats.vmdk_stream.layout`; nothing is left behind.
        NoSpace, ConversionFailed: it could not be made; nothing is left behind.
    """
    fds = await asyncio.to_thread(_open_both, target)
    try:
        had = os.fstat(fds[0]).st_blocks * 512
        room = max(free_space(target.parent)[0] + had - _RESERVE, _FLOOR)
        order = _order(source, fds, volume_size, min(largest, room), algorithms, identity)
        work = Confined(
            module="holdfast.storage.stream_work",
            order=asdict(order),
            fds=[source.fd, *fds],
            total=source.size,
            largest=order.largest,
            work=source.size + volume_size,
        )
        try:
            ended = await run_confined(processes, work, target, owner=owner, progress=progress)
        except DiskHoldsMoreThanPlanned as error:
            if room < largest:  # it is the disk here that is too small, not the plan
                raise no_room(target) from error
            raise
    except HoldfastError:
        target.unlink(missing_ok=True)
        raise
    finally:
        for fd in fds:
            os.close(fd)
    return Unpacked(**ended)


def _order(
    source: Part,
    fds: list[int],
    volume_size: int,
    largest: int,
    algorithms: tuple[str, ...],
    identity: Identity | None,
) -> Order:
    return Order(
        source=source.fd,
        offset=source.offset,
        size=source.size,
        name=source.name,
        target=fds[0],
        direct=fds[1] if len(fds) > 1 else None,
        key=_key(source, volume_size),
        volume_size=volume_size,
        largest=largest,
        algorithms=algorithms,
        parent=os.getpid(),
        uid=identity.uid if identity else None,
        gid=identity.gid if identity else None,
    )


def _open_both(target: Path) -> list[int]:
    """Descriptors of the target: one, and another with O_DIRECT where that can be had."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fds = [os.open(target, flags, 0o600)]
    with contextlib.suppress(OSError):
        fds.append(os.open(target, os.O_WRONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC))
    sync_folder(target.parent)
    return fds


def _key(source: Part, volume_size: int) -> str:
    """Names this very work: the file as it is now, the part of it, and what becomes of it."""
    found = os.fstat(source.fd)
    facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return hashlib.sha256(repr((facts, source.offset, source.size, volume_size)).encode()).hexdigest()
