"""Maps of what a guest has written: QEMU's dirty bitmaps, on the node between a disk's layers and its device.

There they see the guest's writes and nothing else: layers come, go and are merged beneath without a trace,
which a bitmap of a layer's own would miss or mistake for writes. Such a node has no file, so when a machine
is to end in good order its maps are carried in its top layers (qcow2, "Bitmaps extension") to the next one.

Source: QEMU, docs/interop/bitmaps.rst and qapi/block-core.json.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.machine.devices.disks import filter_node
from holdfast.machine.disk_layers import block_nodes, layer_node
from holdfast.qmp.session import QmpSession

GRANULARITY = 4096
"""Bytes that one bit stands for: random writes of 4 KiB are sent as such."""


@dataclass(frozen=True)
class ChangeMap:
    name: str
    recording: bool
    """Whether new writes are entered."""
    changed: int
    """Bytes that are marked."""
    whole: bool
    """False: QEMU ended without storing it, so it says nothing."""


class ChangeMaps:
    """The maps of one QEMU's disks. Every change is of all disks or of none."""

    def __init__(self, session: QmpSession) -> None:
        self._session = session

    async def of_disks(self) -> dict[str, dict[str, ChangeMap]]:
        """Of each disk its maps by name."""
        prefix = filter_node("")
        return await self._found(prefix)

    async def of_layers(self) -> dict[str, dict[str, ChangeMap]]:
        """Of each layer the maps that are carried in it."""
        return await self._found(layer_node(""))

    async def carriers(self) -> frozenset[str]:
        """The layers that can carry maps: qcow2, open for writing."""
        nodes = (await block_nodes(self._session)).items()
        able = (node for node, said in nodes if said["drv"] == "qcow2" and not said["ro"])
        prefix = layer_node("")
        return frozenset(node.removeprefix(prefix) for node in able if node.startswith(prefix))

    async def record(self, name: str, disks: Iterable[str]) -> None:
        """Begin a new map on each of these disks."""
        await self._all(
            ("add", {"node": filter_node(disk), "name": name, "granularity": GRANULARITY}) for disk in disks
        )

    async def freeze(self, names: Mapping[str, str]) -> None:
        """Enter nothing more into these maps (name by disk)."""
        await self._all(
            ("disable", {"node": filter_node(disk), "name": name}) for disk, name in names.items()
        )

    async def drop(self, names: Mapping[str, Iterable[str]]) -> None:
        """Do away with maps: names by disk."""
        await self._all(
            ("remove", {"node": filter_node(disk), "name": name})
            for disk, each in names.items()
            for name in each
        )

    async def take_back(self, names: Mapping[str, tuple[str, Iterable[str]]]) -> None:
        """Enter newer maps into an older one, which records again: (older, newer ones) by disk."""
        actions: list[tuple[str, dict[str, Any]]] = []
        for disk, (older, newer) in names.items():
            here = {"node": filter_node(disk)}
            added = list(newer)
            actions.append(("enable", {**here, "name": older}))
            if added:
                actions.append(("merge", {**here, "target": older, "bitmaps": added}))
            actions += [("remove", {**here, "name": name}) for name in added]
        await self._all(actions)

    async def carry(self, carried: Mapping[str, tuple[str, str, str]]) -> None:
        """Copy maps into layers (qcow2), which keep them: (map, layer, its name there) by disk.

        They go on recording there, and are stored when the machine ends in good order.
        """
        actions: list[tuple[str, dict[str, Any]]] = []
        for disk, (name, layer, there) in carried.items():
            node = {"node": layer_node(layer)}
            kept = {"name": there, "granularity": GRANULARITY, "persistent": True}
            actions.append(("add", node | kept))
            bitmaps = [{"node": filter_node(disk), "name": name}]
            actions.append(("merge", node | {"target": there, "bitmaps": bitmaps}))
        await self._all(actions)

    async def plant(self, names: Mapping[str, str]) -> None:
        """Begin a new map in each of these layers (qcow2), which keep it: name by layer."""
        await self._all(
            (
                "add",
                {"node": layer_node(layer), "name": name, "granularity": GRANULARITY, "persistent": True},
            )
            for layer, name in names.items()
        )

    async def take_over(self, carried: Mapping[str, tuple[str, str, str]]) -> None:
        """The other way round: maps that layers kept record on, on the disks. Same arguments as `carry`."""
        await self._all(
            ("add", {"node": filter_node(disk), "name": name, "granularity": GRANULARITY})
            for disk, (name, _, _) in carried.items()
        )
        await self._all(
            (
                "merge",
                {
                    "node": filter_node(disk),
                    "target": name,
                    "bitmaps": [{"node": layer_node(layer), "name": there}],
                },
            )
            for disk, (name, layer, there) in carried.items()
        )

    async def drop_carried(self, names: Mapping[str, Iterable[str]]) -> None:
        """Do away with maps in layers that are written to: names by layer."""
        await self._all(
            ("remove", {"node": layer_node(layer), "name": name})
            for layer, each in names.items()
            for name in each
        )

    async def _all(self, actions: Iterable[tuple[str, dict[str, Any]]]) -> None:
        told = [{"type": f"block-dirty-bitmap-{what}", "data": data} for what, data in actions]
        if told:
            await self._session.execute("transaction", {"actions": told})

    async def _found(self, prefix: str) -> dict[str, dict[str, ChangeMap]]:
        found: dict[str, dict[str, ChangeMap]] = {}
        for node, said in (await block_nodes(self._session)).items():
            if node.startswith(prefix):
                maps = [_map(each) for each in said.get("dirty-bitmaps", ()) if "name" in each]
                found[node.removeprefix(prefix)] = {each.name: each for each in maps}
        return found


def _map(said: dict[str, Any]) -> ChangeMap:
    whole = not said.get("inconsistent", False)
    return ChangeMap(said["name"], bool(said.get("recording")), int(said.get("count", 0)), whole)
