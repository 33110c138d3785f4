"""Random writes into a volume that no machine uses: what a copy in several rounds needs.

    daemon ──NBD──▶ qemu-storage-daemon ──▶ volume      qcow2 is written by QEMU alone

The program runs as the volume's own user where it has one. What was flushed survives the end of both:
QEMU orders its tables so that a volume is whole at any moment.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from holdfast.host.processes import Completed, Identity, Limits, Processes
from holdfast.host.unix_sockets import listening
from holdfast.storage.appliances.exposure import socket_name
from holdfast.storage.nbd import NbdFailed, NbdNoRoom, NbdWriter
from holdfast.storage.qemu_img import ConversionFailed, no_room, room_for

_EXPORT = "volume"
_LAST_WORDS = 2.0
"""Seconds in which a program whose line broke has ended, if it does."""


@contextlib.asynccontextmanager
async def volume_writer(
    processes: Processes, volume: Path, sockets: Path, *, owner: str, identity: Identity | None
) -> AsyncIterator[NbdWriter]:
    """A writer into a qcow2 volume without a backing file.

    Args:
        sockets: a folder with a short path.
        identity: whose volume it is; None: the daemon's own.

    Raises:
        NoSpace: the volume can grow no more.
        NbdFailed, ConversionFailed: it cannot be written.
    """
    path = sockets / socket_name()
    listener = await asyncio.to_thread(listening, path)
    serving = asyncio.ensure_future(_serve(processes, volume, listener.fileno(), owner, identity))
    connecting = asyncio.ensure_future(NbdWriter.connect(path, _EXPORT))
    try:
        await asyncio.wait([serving, connecting], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            raise serving.exception() or _ended(volume, serving.result().stderr)
        writer = await connecting
        try:
            yield writer
        except NbdNoRoom as full:
            raise no_room(volume) from full
        except NbdFailed:
            if await _overgrown(serving):
                raise no_room(volume) from None
            raise
        finally:
            await writer.close()
    finally:
        for task in (serving, connecting):
            task.cancel()
        await asyncio.gather(serving, connecting, return_exceptions=True)
        listener.close()
        path.unlink(missing_ok=True)


async def _overgrown(serving: "asyncio.Future[Completed]") -> bool:
    """Whether the program was ended since its file reached the length that it may have."""
    await asyncio.wait([serving], timeout=_LAST_WORDS)
    done = serving.done() and not serving.cancelled() and serving.exception() is None
    return done and serving.result().returncode == -signal.SIGXFSZ


async def _serve(
    processes: Processes, volume: Path, listener: int, owner: str, identity: Identity | None
) -> Completed:
    node = {
        "driver": "qcow2",
        "node-name": "volume",
        "backing": None,
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "file": {"driver": "file", "filename": str(volume), "discard": "unmap"},
    }
    return await processes.run(
        [
            "qemu-storage-daemon",
            *("--blockdev", json.dumps(node)),
            *("--nbd-server", f"addr.type=fd,addr.str={listener},max-connections=1"),
            *("--export", f"type=nbd,id=export,node-name=volume,name={_EXPORT},writable=on"),
        ],
        owner=owner,
        identity=identity,
        limits=Limits(file_size=await asyncio.to_thread(_longest, volume)),
        pass_fds=(listener,),
    )


def _longest(volume: Path) -> int:
    """Bytes that a volume may come to have, what it has included."""
    return room_for(volume) + volume.stat().st_size


def _ended(volume: Path, said: bytes) -> ConversionFailed:
    log = said.decode(errors="replace").strip()[-2000:]
    return ConversionFailed(
        f"{volume.name} could not be opened for writing: {log.splitlines()[-1] if log else 'no word why'}",
        value=volume.name,
        cure="See that no other program uses the volume.",
        detail={"log": log},
    )
