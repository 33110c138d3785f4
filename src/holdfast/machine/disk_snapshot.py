"""Disks as they were at one instant, shown to a reader over NBD while the guest writes on.

    th-disk0 -> d-disk0                                  before, and afterwards
    th-disk0 -> cb-disk0 -> d-disk0                      what is about to be overwritten is copied first
                  |target
                fl-disk0   a file without a name         "fleecing"
    ex-disk0 -> sa-disk0 -> cb-disk0                     what is read: the copy, else the disk

Where the copy cannot be written, the guest writes on and the reader gets errors. Everything is found again
in QEMU itself by the names of nodes, so that what a killed daemon left is taken away by the next one.

Source: QEMU, qapi/block-core.json (BlockdevOptionsCbw, snapshot-access) and qapi/block-export.json.
"""

import asyncio
import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.host.unix_sockets import listening
from holdfast.machine.change_maps import GRANULARITY
from holdfast.machine.devices.disks import disk_numbers, filter_node, throttle_group
from holdfast.machine.disk_layers import block_nodes, layer_node
from holdfast.qmp.errors import QmpRefused, QmpTimedOut
from holdfast.qmp.session import QmpSession
from holdfast.spec.errors import Conflict, TimedOut

_COPIES, _FLEECE, _SHOWN, _EXPORT = "cb-", "fl-", "sa-", "ex-"
_FIRST_SET = 1 << 20  # of descriptors; above those of disks
_COPY_SECONDS = 5  # that a guest's write may wait for the copy
_CLOSE_SECONDS = 30.0
_LOOK = 0.5
_LISTENER = "snapshots"


class SnapshotHeld(TimedOut):
    """A reader does not let go of what it was shown; the guest goes on."""

    id = "snapshot-held"


class DisksChanging(Conflict):
    id = "disks-changing"


class DiskSnapshot:
    """The one snapshot of a QEMU's disks that there may be at a time.

    Layers may come on top while there is one: what is below a disk is asked for, never remembered. Jobs that
    change which node that is (mirror, commit, stream) and a snapshot keep out of each other's way: while one
    runs, none is taken and none is released.
    """

    def __init__(self, session: QmpSession) -> None:
        self._session = session

    async def serve(self, path: Path) -> None:
        """Listen for readers at a UNIX socket `path`, in place of where QEMU listened before."""
        with contextlib.suppress(QmpRefused):  # it did not
            await self._session.execute("nbd-server-stop")
        listener = listening(path)
        try:
            await self._session.send_fd(listener.fileno(), _LISTENER)
            await self._session.execute(
                "nbd-server-start", {"addr": {"type": "fd", "data": {"str": _LISTENER}}}
            )
        finally:
            listener.close()

    async def take(self, disks: Sequence[str], scratch: Path) -> tuple[dict[str, int], float]:
        """Keep all `disks` as they are at one instant; nothing else is kept so.

        Args:
            scratch: folder for the copies, which have no names in it.

        Returns:
            The size in bytes of each, and a time (seconds since 1970) shortly before the instant.

        Raises:
            DisksChanging
            QmpRefused: QEMU does not do it; nothing is left of the attempt.
            OSError: the copies cannot be made.
        """
        try:
            nodes = await block_nodes(self._session)
            sizes = {disk: int(nodes[filter_node(disk)]["image"]["virtual-size"]) for disk in disks}
            for disk, size in sizes.items():
                await self._add_fleece(disk, size, scratch)
            tops = await self._below([filter_node(disk) for disk in disks])
            for disk in disks:
                await self._session.execute("blockdev-add", _copying(disk, tops[filter_node(disk)]))
            taken = time.time()
            await self._reopen({disk: f"{_COPIES}{disk}" for disk in disks})
            return sizes, taken
        except BaseException:
            await asyncio.shield(self.release())
            raise

    async def show(self, bitmaps: Mapping[str, str | None]) -> None:
        """Let each disk be read, with a frozen map of changes where it has one: its name by disk.

        Raises QmpRefused.
        """
        for disk, bitmap in bitmaps.items():
            shown = {
                "driver": "snapshot-access",
                "node-name": f"{_SHOWN}{disk}",
                "file": f"{_COPIES}{disk}",
                "discard": "unmap",  # how the reader says what it will not read
            }
            await self._session.execute("blockdev-add", shown)
            maps = [await self._copy_map(disk, bitmap)] if bitmap else []
            export = {
                "type": "nbd",
                "id": f"{_EXPORT}{disk}",
                "name": f"{_EXPORT}{disk}",
                "node-name": f"{_SHOWN}{disk}",
                "writable": True,
                "bitmaps": maps,
            }
            await self._session.execute("block-export-add", export)

    async def _copy_map(self, disk: str, bitmap: str) -> dict[str, str]:
        """A copy is shown: QEMU aborts where a disk grows while a map of its own is."""
        copy = {"node": f"{_FLEECE}{disk}", "name": bitmap}
        added = {**copy, "granularity": GRANULARITY, "disabled": True}
        merged = {
            "node": copy["node"],
            "target": bitmap,
            "bitmaps": [{"node": filter_node(disk), "name": bitmap}],
        }
        actions = [
            {"type": "block-dirty-bitmap-add", "data": added},
            {"type": "block-dirty-bitmap-merge", "data": merged},
        ]
        await self._session.execute("transaction", {"actions": actions})
        return copy

    async def release(self) -> None:
        """Take everything away, also what an earlier daemon left. The readers must have closed.

        Raises:
            SnapshotHeld, DisksChanging, QmpRefused: something stays; the guest works on, and this may be
                tried again.
        """
        await self._end_exports()
        there = await block_nodes(self._session)
        await self._delete(node for node in there if node.startswith(_SHOWN))
        copying = [node.removeprefix(_COPIES) for node in there if node.startswith(_COPIES)]
        tops = await self._below([f"{_COPIES}{disk}" for disk in copying])
        used = [disk for disk in copying if filter_node(disk) in there]
        await self._reopen({disk: tops[f"{_COPIES}{disk}"] for disk in used})
        await self._delete(f"{_COPIES}{disk}" for disk in copying)
        await self._delete(node for node in there if node.startswith(_FLEECE))

    async def _below(self, nodes: Sequence[str]) -> dict[str, str]:
        """The layers' nodes right below others. Raises DisksChanging where a job may stand between."""
        if not nodes:
            return {}
        jobs = [each["device"] for each in await self._session.execute("query-block-jobs")]
        stats = await self._session.execute("query-blockstats", {"query-nodes": True})
        found = {each["node-name"]: each.get("parent", {}).get("node-name", "") for each in stats}
        below = {node: found.get(node, "") for node in nodes}
        if jobs or not all(node.startswith(layer_node("")) for node in below.values()):
            raise DisksChanging(
                "the layers of the VM's disks are being copied or merged",
                value=jobs,
                cure="Wait until that is done; the next cycle tries again.",
            )
        return below

    async def _add_fleece(self, disk: str, size: int, scratch: Path) -> None:
        number = _FIRST_SET + disk_numbers([disk])[disk]
        fd = await asyncio.to_thread(_nameless, scratch, size)
        try:
            await self._session.add_to_set(fd, number)
        finally:
            os.close(fd)
        try:
            node = {
                "driver": "file",
                "node-name": f"{_FLEECE}{disk}",
                "filename": f"/dev/fdset/{number}",
                "discard": "unmap",
                "locking": "off",  # nobody else can open it
            }
            await self._session.execute("blockdev-add", node)
        finally:
            await self._session.execute("remove-fd", {"fdset-id": number})

    async def _reopen(self, below: Mapping[str, str]) -> None:
        """Put nodes under those of disks, all at one instant: new node by disk."""
        options = [
            {
                "driver": "throttle",
                "node-name": filter_node(disk),
                "throttle-group": throttle_group(disk),
                "file": node,
                "discard": "unmap",  # what is below decides
            }
            for disk, node in below.items()
        ]
        if options:
            await self._session.execute("blockdev-reopen", {"options": options})

    async def _end_exports(self) -> None:
        async with self._session.listen("BLOCK_EXPORT_DELETED") as listener:
            until = time.monotonic() + _CLOSE_SECONDS
            asked: set[str] = set()
            while left := await self._exports():
                for name in left - asked:
                    with contextlib.suppress(QmpRefused):  # it went by itself
                        await self._session.execute("block-export-del", {"id": name, "mode": "hard"})
                asked |= left
                if time.monotonic() > until:
                    raise SnapshotHeld(
                        "a reader of the VM's disks does not let go of them",
                        value=sorted(left),
                        cure="It is tried again with the next cycle.",
                    )
                with contextlib.suppress(QmpTimedOut):
                    await listener.get(_LOOK)

    async def _exports(self) -> set[str]:
        found = await self._session.execute("query-block-exports")
        return {each["id"] for each in found if str(each["id"]).startswith(_EXPORT)}

    async def _delete(self, nodes: Iterable[str]) -> None:
        for node in list(nodes):
            await self._session.execute("blockdev-del", {"node-name": node})


def export_of(disk: str) -> str:
    """Name of the NBD export that shows a disk."""
    return f"{_EXPORT}{disk}"


def _copying(disk: str, below: str) -> dict[str, Any]:
    return {
        "driver": "copy-before-write",
        "node-name": f"{_COPIES}{disk}",
        "file": below,
        "target": f"{_FLEECE}{disk}",
        "on-cbw-error": "break-snapshot",
        "cbw-timeout": _COPY_SECONDS,
        "discard": "unmap",
    }


def _nameless(folder: Path, size: int) -> int:
    """A descriptor of a new, empty file that is in no folder."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
        fd, name = tempfile.mkstemp(dir=folder)  # a file system such as NFS
        Path(name).unlink()
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd
