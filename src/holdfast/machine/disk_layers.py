"""The layers of disks in a process that has them open: added, switched to, merged, let go of.

Works on QEMU and on qemu-storage-daemon alike. Every node has the names of `machine.devices.disks`, and a
backing node is always given by name: no file's header is ever followed. A layer that is only read is opened
so; it is opened for writing while another is merged into it.

    add      f-disk0-1, d-disk0-1                       beside the chain, over nothing
    switch   d-disk0-1 -> d-disk0 -> ...                all disks in one transaction
    stream   disk0 is copied into disk0-1, then let go of
    commit   disk0-1 is copied into disk0, then let go of; the guest is moved over where it wrote to disk0-1
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.machine.block_jobs import Alone, BlockJobs, Progress
from holdfast.machine.devices.disks import filter_node, layer_nodes
from holdfast.qmp.session import QmpSession
from holdfast.spec.attachment import Layer
from holdfast.spec.errors import Conflict


class BlockJobNotDismissed(Conflict):
    id = "block-job-not-dismissed"


_FORMAT = "d-"
_FILE = "f-"


async def block_nodes(session: QmpSession) -> dict[str, dict[str, Any]]:
    """All nodes of a QEMU by name (qapi/block-core.json, BlockDeviceInfo)."""
    async with session.node_list:
        await _require_dismissed(session)
        found = await session.execute("query-named-block-nodes", {"flat": True})
    return {node["node-name"]: node for node in found}


async def _require_dismissed(session: QmpSession) -> None:
    """No job has ended that a killed daemon did not dismiss. Raises BlockJobNotDismissed."""
    if session.jobs_end_with_us:
        return
    for job in await session.execute("query-jobs"):
        if job["status"] == "concluded":
            raise BlockJobNotDismissed(
                "a job on the VM's disks has ended, and what it left is not taken in yet",
                value=job["id"],
                cure="It is taken in when what began it goes on; try again.",
            )
    session.jobs_end_with_us = True


def layer_node(name: str) -> str:
    """Name of the node of a layer's content."""
    return f"{_FORMAT}{name}"


class DiskLayers:
    """The layers that one process has open."""

    def __init__(self, session: QmpSession, *, io_uring: bool, alone: Alone = contextlib.nullcontext) -> None:
        """`alone` as of `BlockJobs`."""
        self._session = session
        self._io_uring = io_uring
        self._jobs = BlockJobs(session, alone)

    async def chains(self) -> dict[str, tuple[str, ...]]:
        """Of each disk the names of its layers as they are connected now, top first, its image too."""
        found: dict[str, tuple[str, ...]] = {}
        for stats in await self._session.execute("query-blockstats"):
            disk, names = None, []
            below: dict[str, Any] | None = stats
            while below is not None:
                name = str(below.get("node-name", ""))
                if name.startswith(filter_node("")):  # a job may have put a filter above it
                    disk = name.removeprefix(filter_node(""))
                elif name.startswith(_FORMAT):
                    names.append(name.removeprefix(_FORMAT))
                below = below.get("backing")
            if disk is not None:
                found[disk] = tuple(names)
        return found

    async def nodes(self) -> frozenset[str]:
        """Names of all nodes that there are."""
        return frozenset(await block_nodes(self._session))

    async def writable(self) -> frozenset[str]:
        """Names of the layers that are open for writing."""
        return frozenset(
            name.removeprefix(_FORMAT)
            for name, node in (await block_nodes(self._session)).items()
            if name.startswith(_FORMAT) and not node["ro"]
        )

    async def add(self, layer: Layer, *, fixed: bool = False, below: str | None = None) -> None:
        """Open a layer over the layer `below`, or over nothing; nothing happens where it is open already.

        `fixed`: it is only read.
        """
        there = await self.nodes()
        for node in self._described(layer, below, fixed=fixed):
            if node["node-name"] not in there:
                await self._session.execute("blockdev-add", node)

    async def add_chain(self, layers: Sequence[Layer]) -> None:
        """Open a whole chain (top first) to be read."""
        below: str | None = None
        for layer in reversed(layers):
            await self.add(layer, fixed=True, below=below)
            below = layer.name

    async def switch(self, tops: Mapping[str, str]) -> None:
        """Put layers that were added on top of others, all at one instant or none: new name by old name.

        What is below is written out and only read from then on.
        """
        actions = [
            {"type": "blockdev-snapshot", "data": {"node": f"{_FORMAT}{old}", "overlay": f"{_FORMAT}{new}"}}
            for old, new in tops.items()
        ]
        if actions:
            async with self._session.block_graph:
                await self._session.execute("transaction", {"actions": actions})

    async def drop(self, name: str) -> None:
        """Close a layer on which nothing stands any more; nothing happens where it is not open."""
        there = await self.nodes()
        for node in (f"{_FORMAT}{name}", f"{_FILE}{name}"):
            if node in there:
                await self._session.execute("blockdev-del", {"node-name": node})

    async def make_writable(self, layer: Layer, below: str | None) -> None:
        """Open a layer anew for writing, with the layer `below` it. What was written is durable then."""
        await self._reopen(layer, below, fixed=False)

    async def make_fixed(self, layer: Layer, below: str | None) -> None:
        """Open a layer anew for reading only. What was written is durable then."""
        await self._reopen(layer, below, fixed=True)

    async def stream(self, job_id: str, into: str, base: str | None, progress: Progress) -> None:
        """Copy into a layer all that stands between it and the layer `base`, which is next below it then.

        `base` None: nothing is below it then. Raises BlockJobFailed, QmpRefused.
        """
        arguments = {"device": f"{_FORMAT}{into}"}
        if base is not None:
            arguments["base-node"] = f"{_FORMAT}{base}"
        await self._jobs.run(job_id, "block-stream", arguments, progress)

    async def commit(self, job_id: str, root: str, top: str, base: str, progress: Progress) -> bool:
        """Begin to copy a layer into the one below it.

        Args:
            root: name of the node at the head of the chain.
            top: the layer that goes.
            base: the layer next below it, open for writing.

        Returns:
            Whether it waits to be finished: `top` is still written to, and each write goes to both.
            Otherwise it is done.

        Raises:
            BlockJobFailed, QmpRefused: nothing has changed.
        """
        arguments = {"device": root, "top-node": f"{_FORMAT}{top}", "base-node": f"{_FORMAT}{base}"}
        return await self._jobs.run_until_ready(job_id, "block-commit", arguments, progress)

    async def finish(self, job_id: str) -> None:
        """Let what was written to the upper layer be written to the lower one from now on."""
        await self._jobs.follow(job_id)

    def _described(self, layer: Layer, below: str | None, *, fixed: bool) -> list[dict[str, Any]]:
        nodes = layer_nodes(layer, layer.name, fixed=fixed, discard=True, io_uring=self._io_uring)
        if layer.format == "qcow2":
            nodes[-1]["backing"] = None if below is None else f"{_FORMAT}{below}"
        return nodes

    async def _reopen(self, layer: Layer, below: str | None, *, fixed: bool) -> None:
        nodes = self._described(layer, below, fixed=fixed)
        await self._session.execute("blockdev-reopen", {"options": nodes})


def root_of(disk: str) -> str:
    """Name of the node at the head of a disk's chain in a machine."""
    return filter_node(disk)
