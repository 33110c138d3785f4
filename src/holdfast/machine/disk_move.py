"""A disk moved to other layers while its guest runs: copied beside, then switched over.

    th-disk0 -> d-disk0 -> ...              th-disk0 -> d-disk0               th-disk0 -> d-disk0-1 -> ...
                                 mirror        each write goes to both  switch
                d-disk0-1 -> ...  ───▶          d-disk0-1 -> ...         ───▶  d-disk0 -> ... (closed)

The target's layers have names of their own, so that the node below the throttle node says which of
the two holds (QEMU, docs/interop/live-block-operations.rst and qapi/block-core.json, blockdev-mirror).
The job belongs to QEMU: it is found again by its name after a crash of the daemon.
"""

import re

from holdfast.machine.block_jobs import Alone, BlockJobs, Progress
from holdfast.machine.devices.disks import chain_nodes, filter_node, format_node
from holdfast.machine.disk_layers import DiskLayers
from holdfast.machine.disk_plug import DiskPlug
from holdfast.qmp.session import QmpSession
from holdfast.spec.attachment import DiskAttachment


class DiskMove:
    """The moves of one QEMU's disks."""

    def __init__(self, session: QmpSession, *, io_uring: bool, alone: Alone) -> None:
        """`alone` as of `BlockJobs`."""
        self._session = session
        self._io_uring = io_uring
        self._jobs = BlockJobs(session, alone)
        self._layers = DiskLayers(session, io_uring=io_uring)
        self._plug = DiskPlug(session, io_uring=io_uring)

    async def top(self, disk: str) -> str | None:
        """Name of the node that the guest's writes go to; None: there is no such disk."""
        found = await self._layers.chains()
        return f"d-{found[disk][0]}" if disk in found else None

    async def copy(self, old: DiskAttachment, new: DiskAttachment, progress: Progress) -> None:
        """Open the layers of `new`, and return once its top holds what that of `old` does.

        From then on each write goes to both. One that is under way already is followed. Layers below
        the top are those of `old` in content. Where we are cancelled, the copy is not.

        Raises:
            BlockJobFailed: the copy failed; the guest was not disturbed.
            QmpRefused: it could not begin.
        """
        job = _job(new)
        if job not in await self._jobs.all():
            await self._open(new)
            arguments = {
                "device": filter_node(old.id),
                "replaces": format_node(old),
                "target": format_node(new),
                "sync": "top" if len(new.layers) > 1 else "full",
                # A guest that writes faster than is copied would never be caught up with otherwise.
                "copy-mode": "write-blocking",
            }
            await self._jobs.begin(job, "blockdev-mirror", arguments)
        await self._jobs.follow_until_ready(job, progress)

    async def switch(self, new: DiskAttachment) -> None:
        """Let the guest write to `new` alone. The guest must be stopped; nothing of it is under way then.

        Raises:
            BlockJobFailed: it still writes to the old layers.
        """
        await self._jobs.follow(_job(new))

    async def give_up(self, new: DiskAttachment) -> None:
        """End a copy and close its layers; nothing happens where the guest writes to them already."""
        await self._jobs.cancel(_job(new))
        if await self.top(new.id) != format_node(new):
            await self.close(new)

    async def close(self, attachment: DiskAttachment) -> None:
        """Close layers that the guest no longer uses; those that something uses stay."""
        names = [re.escape(layer.name) for layer in attachment.layers]
        await self._plug.drop_nodes(re.compile(rf"[df]-({'|'.join(names)})"))

    async def _open(self, new: DiskAttachment) -> None:
        there = await self._plug.nodes()
        for node in chain_nodes(new, self._io_uring):
            if node["node-name"] not in there:
                await self._session.execute("blockdev-add", node)


def _job(new: DiskAttachment) -> str:
    return f"move-{new.id}-to-{format_node(new)}"
