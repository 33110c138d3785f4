"""Random writes into a volume that no machine uses: what a copy in several rounds needs.

    daemon ──NBD──▶ qemu-storage-daemon ──▶ volume      qcow2 is written by QEMU alone

The program runs as the volume's own user where it has one. What was flushed survives the end of both:
QEMU orders its tables so that a volume is whole at any moment.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

from holdfast.host.processes import Completed, Identity, Processes
from holdfast.host.unix_sockets import listening
from holdfast.spec.ids import new_id
from holdfast.storage.nbd import NbdWriter
from holdfast.storage.qemu_img import ConversionFailed

_EXPORT = "volume"


@contextlib.asynccontextmanager
async def volume_writer(
    processes: Processes, volume: Path, sockets: Path, *, owner: str, identity: Identity | None
) -> AsyncIterator[NbdWriter]:
    """A writer into a qcow2 volume without a backing file.

    Args:
        sockets: a folder with a short path.
        identity: whose volume it is; None: the daemon's own.

    Raises:
        NbdFailed, ConversionFailed: it cannot be written.
    """
    path = sockets / f"write-{new_id()[:8]}.sock"
    listener = await asyncio.to_thread(listening, path)
    serving = asyncio.ensure_future(_serve(processes, volume, listener.fileno(), owner, identity))
    try:
        connecting = asyncio.ensure_future(NbdWriter.connect(path, _EXPORT))
        await asyncio.wait([serving, connecting], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            raise serving.exception() or _ended(volume, serving.result().stderr)
        writer = await connecting
        try:
            yield writer
        finally:
            await writer.close()
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()
        path.unlink(missing_ok=True)


def remove_sockets(folder: Path) -> None:
    """What a crash left of them."""
    for path in folder.glob("write-*.sock"):
        path.unlink(missing_ok=True)


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
        pass_fds=(listener,),
    )


def _ended(volume: Path, said: bytes) -> ConversionFailed:
    log = said.decode(errors="replace").strip()[-2000:]
    return ConversionFailed(
        f"{volume.name} could not be opened for writing: {log.splitlines()[-1] if log else 'no word why'}",
        value=volume.name,
        cure="See that no other program uses the volume.",
        detail={"log": log},
    )
