"""Disks as they were at one instant, shown to a reader over NBD while the guest writes on.

    th-disk0 -> d-disk0                                  before, and afterwards
    th-disk0 -> cb-A-disk0 -> d-disk0                    what is about to be overwritten is copied first
                  |target
                fl-A-disk0   a file without a name       "fleecing"
    ex-A-disk0 -> sa-A-disk0 -> cb-A-disk0               what is read: the copy, else the disk

Each of several readers has a snapshot of its own, which a tag names (A, B). One that is taken while there is
another stands above it, over a slot: QEMU can put another node under a throttle node, and not under a copying
one. So each can be taken away whenever it likes.

    th-disk0 -> cb-B-disk0 -> sl-B-disk0 -> cb-A-disk0 -> d-disk0
    th-disk0 -> cb-B-disk0 -> sl-B-disk0 -> d-disk0      A is taken away; the slot goes with B

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
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.host.unix_sockets import listening
from holdfast.machine.change_maps import GRANULARITY
from holdfast.machine.devices.disks import filter_node, throttle_group
from holdfast.machine.disk_layers import block_nodes, layer_node
from holdfast.qmp.errors import QmpRefused, QmpTimedOut
from holdfast.qmp.session import QmpSession
from holdfast.spec.errors import Conflict, TimedOut

_COPIES, _FLEECE, _SHOWN, _EXPORT, _SLOT = "cb-", "fl-", "sa-", "ex-", "sl-"
_PASSING = "tg-slots"  # the throttle group of slots, which holds nothing back
_FIRST_SET = 1 << 20  # of descriptors; above those of disks
READERS = 16
"""That may wait to be let in."""
_COPY_SECONDS = 5  # that a guest's write may wait for the copy
_CLOSE_SECONDS = 30.0
_CYCLE_SECONDS = 5.0
"""That a cycle of replication may take to end by itself."""
_LOOK = 0.5
_SOON = 0.02
_LISTENER = "snapshots"


class SnapshotHeld(TimedOut):
    """A reader does not let go of what it was shown; the guest goes on."""

    id = "snapshot-held"


class DisksChanging(Conflict):
    id = "disks-changing"


class DiskSnapshot:
    """The snapshots of a QEMU's disks: one for each tag at a time.

    Layers may come on top while there is one: what is below a disk is asked for, never remembered. Jobs that
    change which node that is (mirror, commit, stream) and a snapshot keep out of each other's way: while one
    runs, none is taken and none is released.
    """

    def __init__(self, session: QmpSession) -> None:
        self._session = session
        self._barred = 0
        """How many want that there is no snapshot now."""
        self._served: Path | None = None

    async def serve(self, path: Path) -> None:
        """Listen for readers at a UNIX socket `path`, in place of where QEMU listened before.

        Once it does, nothing more happens: others read there.
        """
        async with self._session.block_graph:
            if self._served == path and path.exists():
                return
            with contextlib.suppress(QmpRefused):  # it did not
                await self._session.execute("nbd-server-stop")
            listener = listening(path, waiting=READERS)
            try:
                await self._session.send_fd(listener.fileno(), _LISTENER)
                await self._session.execute(
                    "nbd-server-start", {"addr": {"type": "fd", "data": {"str": _LISTENER}}}
                )
            finally:
                listener.close()
            self._served = path

    async def take(self, tag: str, disks: Sequence[str], scratch: Path) -> tuple[dict[str, int], float]:
        """Keep all `disks` as they are at one instant; nothing else is kept so under this tag.

        Args:
            tag: letters and digits, 8 at most.
            scratch: folder for the copies, which have no names in it.

        Returns:
            The size in bytes of each, and a time (seconds since 1970) shortly before the instant.

        Raises:
            DisksChanging
            QmpRefused: QEMU does not do it; nothing is left of the attempt.
            OSError: the copies cannot be made.
        """
        async with self._session.block_graph:
            self._require_free()
            try:
                nodes = await block_nodes(self._session)
                sizes = {disk: int(nodes[filter_node(disk)]["image"]["virtual-size"]) for disk in disks}
                for disk, size in sizes.items():
                    await self._add_fleece(tag, disk, size, scratch)
                below = await self._below([filter_node(disk) for disk in disks])
                for disk in disks:
                    under = await self._slot(tag, disk, below[filter_node(disk)])
                    await self._session.execute("blockdev-add", _copying(tag, disk, under))
                taken = time.time()
                await self._reopen({disk: f"{_COPIES}{tag}-{disk}" for disk in disks})
                return sizes, taken
            except BaseException:
                await asyncio.shield(self._release(tag))
                raise

    async def show(self, tag: str, bitmaps: Mapping[str, str | None]) -> None:
        """Let each disk be read, with a frozen map of changes where it has one: its name by disk.

        Raises DisksChanging, QmpRefused.
        """
        async with self._session.block_graph:
            self._require_free()
            for disk, bitmap in bitmaps.items():
                await self._show(tag, disk, bitmap)

    @property
    def is_barred(self) -> bool:
        """Whether the disks are wanted for something else now."""
        return self._barred > 0

    def between_cycles(self) -> contextlib.AbstractAsyncContextManager[None]:
        """As `barred`; a cycle of replication that is under way may end first."""
        return self.barred(_CYCLE_SECONDS)

    @contextlib.asynccontextmanager
    async def barred(self, patience: float = 0.0) -> AsyncIterator[None]:
        """While this lasts there is no snapshot, and none can be taken.

        Those that are there have `patience` seconds to be released, and are taken away then: their readers
        get errors and try again. For what QEMU does only with disks that are not shown, such as writing out
        the last of the memory. Raises as `release`.
        """
        self._barred += 1
        try:
            until = time.monotonic() + patience
            while time.monotonic() < until and await self.tags():  # noqa: ASYNC110  (QEMU tells nobody)
                await asyncio.sleep(_SOON)
            async with self._session.block_graph:
                there = await self.tags()
            for tag in there:
                await self.release(tag)
            yield
        finally:
            self._barred -= 1

    def _require_free(self) -> None:
        if self._barred:
            raise DisksChanging(
                "the VM's disks are wanted for something else, such as its memory being written out",
                cure="Wait until that is done; the next cycle tries again.",
            )

    async def _show(self, tag: str, disk: str, bitmap: str | None) -> None:
        shown = {
            "driver": "snapshot-access",
            "node-name": f"{_SHOWN}{tag}-{disk}",
            "file": f"{_COPIES}{tag}-{disk}",
            "discard": "unmap",  # how the reader says what it will not read
        }
        await self._session.execute("blockdev-add", shown)
        maps = [await self._copy_map(tag, disk, bitmap)] if bitmap else []
        export = {
            "type": "nbd",
            "id": export_of(tag, disk),
            "name": export_of(tag, disk),
            "node-name": f"{_SHOWN}{tag}-{disk}",
            "writable": True,
            "bitmaps": maps,
        }
        await self._session.execute("block-export-add", export)

    async def _copy_map(self, tag: str, disk: str, bitmap: str) -> dict[str, str]:
        """A copy is shown: QEMU aborts where a disk grows while a map of its own is."""
        copy = {"node": f"{_FLEECE}{tag}-{disk}", "name": bitmap}
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

    async def release(self, tag: str) -> None:
        """Take everything away, also what an earlier daemon left. The readers must have closed.

        Raises:
            SnapshotHeld, DisksChanging, QmpRefused: something stays; the guest works on, and this may be
                tried again.
        """
        await self._end_exports(tag)
        async with self._session.block_graph:
            await self._release(tag)

    async def tags(self) -> frozenset[str]:
        """Of all snapshots of which something is there."""
        there = await block_nodes(self._session)
        kinds = (_COPIES, _FLEECE, _SHOWN)
        return frozenset(node.split("-")[1] for node in there if node.startswith(kinds))

    async def _release(self, tag: str) -> None:
        there = await block_nodes(self._session)
        await self._delete(node for node in there if node.startswith(f"{_SHOWN}{tag}-"))
        mine = f"{_COPIES}{tag}-"
        copying = [node.removeprefix(mine) for node in there if node.startswith(mine)]
        below = await self._below([f"{mine}{disk}" for disk in copying])
        moved = {
            over: below[under]
            for over, under in (await self._children()).items()
            if under in below and over.startswith((filter_node(""), _SLOT))
        }
        await self._put_under(moved)
        await self._delete(f"{mine}{disk}" for disk in copying)
        await self._delete(node for node in there if node.startswith(f"{_FLEECE}{tag}-"))
        await self._drop_slots()

    async def _drop_slots(self) -> None:
        """Those on which no copying node stands."""
        children = await self._children()
        slots = {node for node in children if node.startswith(_SLOT)}
        if not slots or await self._session.execute("query-block-jobs"):
            return
        kept = {under for over, under in children.items() if over.startswith(_COPIES)} & slots
        moved: dict[str, str] = {}
        for over, under in children.items():
            if under in slots and (over in kept or over.startswith(filter_node(""))):
                while under in slots:
                    under = children[under]
                moved[over] = under
        await self._put_under(moved)
        gone = slots - kept
        while gone:
            lowest_last = gone - {children[each] for each in gone}
            await self._delete(lowest_last)
            gone -= lowest_last

    async def _children(self) -> dict[str, str]:
        """Of each node the one that it stands on first."""
        stats = await self._session.execute("query-blockstats", {"query-nodes": True})
        return {each["node-name"]: each.get("parent", {}).get("node-name", "") for each in stats}

    async def _below(self, nodes: Sequence[str]) -> dict[str, str]:
        """The nodes right below others. Raises DisksChanging where a job may stand between."""
        if not nodes:
            return {}
        jobs = [each["device"] for each in await self._session.execute("query-block-jobs")]
        children = await self._children()
        below = {node: children.get(node, "") for node in nodes}
        ours = (layer_node(""), _COPIES, _SLOT)
        if jobs or not all(node.startswith(ours) for node in below.values()):
            raise DisksChanging(
                "the layers of the VM's disks are being copied or merged",
                value=jobs,
                cure="Wait until that is done; the next cycle tries again.",
            )
        return below

    async def _slot(self, tag: str, disk: str, below: str) -> str:
        """What a copying node is to stand on: `below`, or a slot over it where that is another's."""
        if below.startswith(layer_node("")):
            return below
        slot = f"{_SLOT}{tag}-{disk}"
        objects = await self._session.execute("qom-list", {"path": "/objects"})
        if not any(each["name"] == _PASSING for each in objects):
            await self._session.execute("object-add", {"qom-type": "throttle-group", "id": _PASSING})
        await self._session.execute("blockdev-add", _throttling(slot, _PASSING, below))
        return slot

    async def _add_fleece(self, tag: str, disk: str, size: int, scratch: Path) -> None:
        used = [each["fdset-id"] for each in await self._session.execute("query-fdsets")]
        number = max([_FIRST_SET, *used]) + 1  # QEMU may take a descriptor that was removed from a set
        fd = await asyncio.to_thread(_nameless, scratch, size)
        try:
            await self._session.add_to_set(fd, number)
        finally:
            os.close(fd)
        try:
            node = {
                "driver": "file",
                "node-name": f"{_FLEECE}{tag}-{disk}",
                "filename": f"/dev/fdset/{number}",
                "discard": "unmap",
                "locking": "off",  # nobody else can open it
            }
            await self._session.execute("blockdev-add", node)
        finally:
            await self._session.execute("remove-fd", {"fdset-id": number})

    async def _reopen(self, below: Mapping[str, str]) -> None:
        """Put nodes under those of disks, all at one instant: new node by disk."""
        await self._put_under({filter_node(disk): node for disk, node in below.items()})

    async def _put_under(self, below: Mapping[str, str]) -> None:
        """Put nodes under those of disks and slots, all at one instant: new node by the upper one."""
        options = []
        for over, node in below.items():
            slot = over.startswith(_SLOT)
            group = _PASSING if slot else throttle_group(over.removeprefix(filter_node("")))
            options.append(_throttling(over, group, node))
        if options:
            await self._session.execute("blockdev-reopen", {"options": options})

    async def _end_exports(self, tag: str) -> None:
        async with self._session.listen("BLOCK_EXPORT_DELETED") as listener:
            until = time.monotonic() + _CLOSE_SECONDS
            asked: set[str] = set()
            while left := await self._exports(tag):
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

    async def _exports(self, tag: str) -> set[str]:
        found = await self._session.execute("query-block-exports")
        return {each["id"] for each in found if str(each["id"]).startswith(f"{_EXPORT}{tag}-")}

    async def _delete(self, nodes: Iterable[str]) -> None:
        for node in list(nodes):
            await self._session.execute("blockdev-del", {"node-name": node})


def export_of(tag: str, disk: str) -> str:
    """Name of the NBD export that shows a disk."""
    return f"{_EXPORT}{tag}-{disk}"


def _throttling(node: str, group: str, below: str) -> dict[str, Any]:
    return {
        "driver": "throttle",
        "node-name": node,
        "throttle-group": group,
        "file": below,
        "discard": "unmap",  # what is below decides
    }


def _copying(tag: str, disk: str, below: str) -> dict[str, Any]:
    return {
        "driver": "copy-before-write",
        "node-name": f"{_COPIES}{tag}-{disk}",
        "file": below,
        "target": f"{_FLEECE}{tag}-{disk}",
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
