"""A part of an open file, shown to a program that may open nothing itself.

    file ◀─ qemu-storage-daemon: these bytes, read-only ◀─ socket ◀─ qemu-img, a user without rights

The program that parses the foreign format runs as a user of its own; the one that has the file open
parses nothing. Nothing is unpacked or copied. The socket listens before either program is started, so
nobody waits for the other.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from holdfast.host.processes import Completed, Identity, Processes
from holdfast.host.unix_sockets import listening
from holdfast.spec.ids import new_id
from holdfast.storage.appliances.source import HeldFile
from holdfast.storage.formats.reading import SECTOR
from holdfast.storage.qemu_img import ConversionFailed

Node = dict[str, Any]
T = TypeVar("T")
_EXPORT = "part"
_CONNECTIONS = 8
_PREFIX = "part-"


def socket_name() -> str:
    """A short name that no other socket has (unix(7): a path has at most 107 bytes)."""
    return f"{_PREFIX}{new_id()[:8]}.sock"


def remove_sockets(folder: Path) -> None:
    """What a crash left of them."""
    for path in folder.glob(f"{_PREFIX}*.sock"):
        path.unlink(missing_ok=True)


async def exposed(
    processes: Processes,
    held: HeldFile,
    socket_path: Path,
    use: Callable[[Node], Awaitable[T]],
    *,
    owner: str,
    identity: Identity | None,
) -> T:
    """The result of `use`, which is given the file as a node of QEMU's block layer (QAPI BlockdevOptionsNbd).

    Args:
        socket_path: where the socket is made, short and in a folder that `identity` may pass through.
        identity: who may connect; None: whoever the daemon is.

    Raises:
        ConversionFailed: the file could not be shown.
        and what `use` raises.
    """
    listener = await asyncio.to_thread(listening, socket_path, identity, _CONNECTIONS)
    tasks: list[asyncio.Future[Any]] = []
    try:
        serving = asyncio.ensure_future(_serve(processes, held, listener.fileno(), owner))
        node: Node = {
            "driver": "nbd",
            "server": {"type": "unix", "path": str(socket_path)},
            "export": _EXPORT,
        }
        work = asyncio.ensure_future(use(node))
        tasks = [serving, work]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise _ended(held, serving.result())
        return work.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listener.close()
        socket_path.unlink(missing_ok=True)


async def _serve(processes: Processes, held: HeldFile, listener: int, owner: str) -> Completed:
    whole: Node = {"driver": "file", "filename": f"/dev/fd/{held.fd}", "node-name": "file", "read-only": True}
    part: Node = {"driver": "raw", "file": "file", "node-name": "part", "read-only": True}
    if held.offset or os.fstat(held.fd).st_size != held.size:
        # QEMU wants whole sectors; archives pad their members to them with zeros.
        part |= {"offset": held.offset, "size": -(-held.size // SECTOR) * SECTOR}
    return await processes.run(
        [
            "qemu-storage-daemon",
            *("--blockdev", json.dumps(whole)),
            *("--blockdev", json.dumps(part)),
            *("--nbd-server", f"addr.type=fd,addr.str={listener},max-connections={_CONNECTIONS}"),
            *("--export", f"type=nbd,id=export,node-name=part,name={_EXPORT},writable=off"),
        ],
        owner=owner,
        pass_fds=(held.fd, listener),
    )


def _ended(held: HeldFile, done: Completed) -> ConversionFailed:
    said = done.stderr.decode(errors="replace").strip()[-2000:]
    last = said.splitlines()[-1] if said else f"it ended with status {done.returncode}"
    return ConversionFailed(
        f"{held.name!r} could not be read: {last}",
        value=held.name,
        cure="See that no other program writes to the file, and try again.",
        detail={"log": said},
    )
