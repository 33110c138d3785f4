"""From a disk, given as a chain of image files, straight to a streamOptimized VMDK.

`qemu-img map` says where each run of data lies; a process without rights (`pack_work`) reads and deflates
them on all CPUs and writes front to back.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from holdfast.host.files import sync_folder
from holdfast.host.processes import Identity, Processes
from holdfast.host.space import free_space
from holdfast.spec.attachment import Layer
from holdfast.spec.errors import Unsupported
from holdfast.spec.units import MIB
from holdfast.storage.confined import Confined, run_confined
from holdfast.storage.pack_work import RUN, Order
from holdfast.storage.qemu_img import Progress
from holdfast.storage.volume_content import map_chain

_RESERVE = 512 * MIB
"""Bytes of the file system that are left to the catalog and to running VMs."""
_FLOOR = 16 * MIB
"""Bytes that are tried whatever room there is."""


class CompressedClusters(Unsupported):
    """The chain holds clusters that are compressed; only QEMU itself reads them."""

    id = "compressed-clusters"


@dataclass(frozen=True)
class Packed:
    size: int
    """Bytes of the file."""
    digests: dict[str, str]
    """In hex, by the names that were asked for."""
    memory: int
    """Bytes that the process had at most."""


async def volume_to_stream(
    processes: Processes,
    layers: Sequence[Layer],
    size: int,
    target: Path,
    *,
    owner: str,
    identity: Identity | None,
    progress: Progress,
    algorithms: tuple[str, ...] = (),
) -> Packed:
    """Make `target` (replaced if there) a VMDK with what a chain (top first) shows, durable and 0600.

    Args:
        size: bytes of the disk.
        identity: who can read the chain, and whom the process becomes.

    Raises:
        CompressedClusters, NotALocalFile, DiskTooLargeForVmdk: it cannot be done this way, or at all.
        NoSpace, ConversionFailed: it could not be made; nothing is left behind.
    """
    with contextlib.ExitStack() as stack:
        runs = stack.enter_context(tempfile.TemporaryFile(dir=target.parent))
        await _map(processes, layers, runs, owner, identity)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        sources = [_opened(stack, layer.path, flags) for layer in layers]
        target.unlink(missing_ok=True)
        stack.callback(sync_folder, target.parent)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fds = [_opened(stack, target, flags)]
            with contextlib.suppress(OSError):
                fds.append(_opened(stack, target, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC))
            order = Order(
                sources=tuple(sources),
                runs=runs.fileno(),
                size=size,
                target=fds[0],
                direct=fds[1] if len(fds) > 1 else None,
                name=target.name,
                content_id=int.from_bytes(os.urandom(4), "big"),
                algorithms=algorithms,
                parent=os.getpid(),
                uid=identity.uid if identity else None,
                gid=identity.gid if identity else None,
            )
            work = Confined(
                module="holdfast.storage.pack_work",
                order=asdict(order),
                fds=[*sources, runs.fileno(), *fds],
                total=size,
                largest=max(free_space(target.parent)[0] - _RESERVE, _FLOOR),
                work=size,
            )
            return Packed(**await run_confined(processes, work, target, owner=owner, progress=progress))
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _opened(stack: contextlib.ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags, 0o600)
    stack.callback(os.close, fd)
    return fd


async def _map(
    processes: Processes, layers: Sequence[Layer], runs: IO[bytes], owner: str, identity: Identity | None
) -> None:
    compressed = False

    def take(line: bytes) -> None:
        nonlocal compressed
        text = line.strip().lstrip(b"[").rstrip(b",]")
        found = json.loads(text) if text else {"data": False}
        if not found["data"] or found["zero"]:
            return
        if "offset" not in found:
            compressed = True
        else:
            runs.write(RUN.pack(found["start"], found["length"], found["offset"], found["depth"]))

    heard = _lines(take)
    await map_chain(processes, layers, heard, owner=owner, identity=identity)
    heard(b"\n")
    runs.flush()
    if compressed:
        raise CompressedClusters(
            "the disk has compressed clusters, which only QEMU reads",
            value=str(layers[-1].path),
            cure="Export it as qcow2.",
        )


def _lines(take: Callable[[bytes], None]) -> Callable[[bytes], None]:
    waiting = bytearray()

    def heard(chunk: bytes) -> None:
        waiting.extend(chunk)
        *lines, rest = waiting.split(b"\n")
        for line in lines:
            take(bytes(line))
        waiting[:] = rest

    return heard
