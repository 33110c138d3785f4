"""Random writes into a volume that no machine uses: what a copy in several rounds needs.

    daemon ──NBD──▶ qemu-storage-daemon ──▶ volume      file, device or image; written by QEMU alone

The program runs as the volume's own user where it has one. What was flushed survives the end of both:
QEMU orders its tables so that a volume is whole at any moment.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from holdfast.host.files import in_memory
from holdfast.host.processes import Completed, Identity, Limits, Processes
from holdfast.host.space import NoSpace
from holdfast.host.unix_sockets import listening
from holdfast.spec.attachment import FilePlace, Layer, Place
from holdfast.storage.appliances.exposure import socket_name
from holdfast.storage.nbd import NbdFailed, NbdNoRoom, NbdWriter
from holdfast.storage.pools.rbd import keys_of
from holdfast.storage.qemu_img import ConversionFailed, no_room, room_for

_EXPORT = "volume"
_LAST_WORDS = 2.0
"""Seconds in which a program whose line broke has ended, if it does."""


@contextlib.asynccontextmanager
async def volume_writer(
    processes: Processes, volume: Layer, sockets: Path, *, owner: str, identity: Identity | None
) -> AsyncIterator[NbdWriter]:
    """A writer into a volume that has nothing below it.

    Args:
        sockets: a folder with a short path.
        identity: whose volume it is; None: the daemon's own.

    Raises:
        NoSpace: the volume can grow no more.
        NbdFailed, ConversionFailed: it cannot be written.
        CephFailed: there is no key for it.
    """
    path = sockets / socket_name()
    listener = await asyncio.to_thread(listening, path)
    serving = asyncio.ensure_future(_serve(processes, volume, listener.fileno(), owner, path.name, identity))
    connecting = asyncio.ensure_future(NbdWriter.connect(path, _EXPORT))
    try:
        await asyncio.wait([serving, connecting], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            raise serving.exception() or _ended(volume, serving.result().stderr)
        writer = await connecting
        try:
            yield writer
        except NbdNoRoom as full:
            raise _no_room(volume.place) from full
        except NbdFailed:
            if await _overgrown(serving):
                raise _no_room(volume.place) from None
            raise
        finally:
            await writer.close()
            await _ended_well(processes, owner, path.name)
    finally:
        for task in (serving, connecting):
            task.cancel()
        await asyncio.gather(serving, connecting, return_exceptions=True)
        listener.close()
        path.unlink(missing_ok=True)


async def _ended_well(processes: Processes, owner: str, role: str) -> None:
    """Closed by the program itself, a volume has no clusters that belong to nothing."""
    for found in await asyncio.to_thread(processes.find, owner, role):
        await processes.end(found.ref)


async def _overgrown(serving: "asyncio.Future[Completed]") -> bool:
    """Whether the program was ended since its file reached the length that it may have."""
    await asyncio.wait([serving], timeout=_LAST_WORDS)
    done = serving.done() and not serving.cancelled() and serving.exception() is None
    return done and serving.result().returncode == -signal.SIGXFSZ


async def _serve(
    processes: Processes, volume: Layer, listener: int, owner: str, role: str, identity: Identity | None
) -> Completed:
    node = {
        "driver": volume.format,
        "node-name": "volume",
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "file": {**volume.place.protocol(), "discard": "unmap"},
        **({"backing": None} if volume.format == "qcow2" else {}),
    }
    secrets = await keys_of([volume.place])
    fds = {name: in_memory(name, secret) for name, secret in secrets.items()}
    try:
        return await processes.run(
            [
                "qemu-storage-daemon",
                *(f"--object=secret,id={name},file=/dev/fd/{fd}" for name, fd in fds.items()),
                *("--blockdev", json.dumps(node)),
                *("--nbd-server", f"addr.type=fd,addr.str={listener},max-connections=1"),
                *("--export", f"type=nbd,id=export,node-name=volume,name={_EXPORT},writable=on"),
            ],
            owner=owner,
            role=role,
            identity=identity,
            limits=Limits(file_size=await asyncio.to_thread(_longest, volume)),
            pass_fds=(listener, *fds.values()),
        )
    finally:
        for fd in fds.values():
            os.close(fd)


def _longest(volume: Layer) -> int | None:
    """Bytes that a file may come to have, what it has included; None: it is none.

    A raw file is as long as its disk from the beginning.
    """
    if not isinstance(volume.place, FilePlace):
        return None
    length = volume.place.path.stat().st_size
    return length if volume.format == "raw" else room_for(volume.place.path) + length


def _no_room(place: Place) -> NoSpace:
    if isinstance(place, FilePlace):
        return no_room(place.path)
    return NoSpace(
        f"no room is left for the volume {place}",
        value=str(place),
        cure="Give its pool more space, or choose another pool.",
    )


def _ended(volume: Layer, said: bytes) -> ConversionFailed:
    log, shown = said.decode(errors="replace").strip()[-2000:], str(volume.place)
    return ConversionFailed(
        f"{shown} could not be opened for writing: {log.splitlines()[-1] if log else 'no word why'}",
        value=shown,
        cure="See that no other program uses the volume.",
        detail={"log": log},
    )
