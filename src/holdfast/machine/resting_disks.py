"""The disks of a VM that does not run, in a qemu-storage-daemon: shown over NBD to be read, as a whole.

    ex-TAG-disk0 -> d-disk0-1 -> d-disk0 -> ...      all of it open for reading only

A map of changes that a machine left in a disk's top layer is shown beside it, as a copy. Maps are put into
top layers, too: the next machine enters there what its guest writes, from its first write on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.machine.change_maps import GRANULARITY, ChangeMap, ChangeMaps
from holdfast.machine.disk_layers import DiskLayers, block_nodes, layer_node
from holdfast.machine.disk_plug import DiskPlug
from holdfast.machine.disk_snapshot import export_of
from holdfast.qmp.session import QmpSession
from holdfast.spec.attachment import Layer


@dataclass(frozen=True)
class RestingDisk:
    layers: tuple[Layer, ...]
    """Top first."""
    secrets: Mapping[str, bytes]
    """What opens them, by the names that they know it by."""


class RestingDisks:
    """Those that one qemu-storage-daemon has open."""

    def __init__(self, session: QmpSession, *, io_uring: bool) -> None:
        self._session = session
        self._plug = DiskPlug(session, io_uring=io_uring)
        self._layers = DiskLayers(session, io_uring=io_uring)
        self._maps = ChangeMaps(session)

    async def open(self, given: RestingDisk, *, writable: bool = False) -> int:
        """Open a disk's whole chain; returns its size in bytes. `writable`: the top layer is.

        Raises QmpRefused: it cannot be opened.
        """
        await self._plug.know(given.secrets)
        await self._layers.add_chain(given.layers[1:] if writable else given.layers)
        top = given.layers[0]
        if writable:
            await self._layers.add(top, below=given.layers[1].name if given.layers[1:] else None)
        return int((await block_nodes(self._session))[layer_node(top.name)]["image"]["virtual-size"])

    async def carried(self) -> dict[str, dict[str, ChangeMap]]:
        """Of each layer the maps that machines left in it."""
        return await self._maps.of_layers()

    async def show(self, disk: str, top: str, tag: str, changes: tuple[str, str] | None) -> None:
        """Let a disk that is open be read, under the name `export_of(tag, disk)`.

        Args:
            top: its top layer.
            changes: a map that is carried there, and the name that it is shown by.
        """
        node, maps = layer_node(top), []
        if changes is not None:
            carried, name = changes
            copy = {"node": node, "name": name}
            added = {**copy, "granularity": GRANULARITY, "disabled": True}
            merged = {"node": node, "target": name, "bitmaps": [carried]}
            actions = [
                {"type": "block-dirty-bitmap-add", "data": added},
                {"type": "block-dirty-bitmap-merge", "data": merged},
            ]
            await self._session.execute("transaction", {"actions": actions})
            maps = [copy]
        export = {"type": "nbd", "id": export_of(tag, disk), "name": export_of(tag, disk), "node-name": node}
        await self._session.execute("block-export-add", {**export, "writable": False, "bitmaps": maps})

    async def plant(self, name: str, tops: Sequence[str], stale: Mapping[str, Sequence[str]]) -> list[str]:
        """Put an empty map into top layers that are open for writing; returns those that can have one.

        `stale`: maps of each that go.
        """
        await self._maps.drop_carried({top: stale.get(top, ()) for top in tops})
        able = await self._maps.carriers()
        planted = [top for top in tops if top in able]
        await self._maps.plant(dict.fromkeys(planted, name))
        return planted
