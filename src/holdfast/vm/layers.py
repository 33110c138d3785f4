"""The algebra of a VM's disk layers: which exist, which are shared, which may become one. Pure.

What exists follows from specifications alone: the VM's own, that of its running machine, and those that
its checkpoints keep. Each disk in one of them is a chain; together they form a tree.

    current      disk0-2 ──▶ disk0-1 ──▶ disk0 ──▶ (image)
    checkpoint A             disk0-1 ──▶ disk0
    checkpoint B                         disk0

A layer on top of a chain is needed as it is. One that no chain has on top and on which exactly one other
stands may be joined with that one, in either direction: `UP` copies it into the one above, `DOWN` copies
the one above into it. A file that no specification names is garbage.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from holdfast.spec.disk_requests import own_layers
from holdfast.spec.vm import Disk, VmSpec, VolumeFormat

MOST_LAYERS = 50
"""Of one disk. Every layer costs memory, an open file and a look-up on each first read."""

_NAME = re.compile(r"(?P<disk>.+?)(?:-(?P<number>[0-9]{1,9}))?")


class Direction(Enum):
    UP = auto()
    """The lower layer is copied into the upper one, which stays."""
    DOWN = auto()
    """The upper layer is copied into the lower one, which stays."""


@dataclass(frozen=True)
class Merge:
    """Two layers of a disk that may become one."""

    disk: str
    lower: str
    upper: str


def named(specs: Iterable[VmSpec]) -> dict[str, frozenset[str]]:
    """Of each disk id the layers that exist."""
    found: dict[str, set[str]] = {}
    for disk in _disks(specs):
        found.setdefault(disk.id, set()).update(own_layers(disk))
    return {disk: frozenset(layers) for disk, layers in found.items()}


def next_layer(disk_id: str, taken: Iterable[str]) -> str:
    """The name of a disk's next layer: above every number that is `taken`."""
    highest = 0
    for name in taken:
        match = _NAME.fullmatch(name)
        if match and match["disk"] == disk_id and match["number"]:
            highest = max(highest, int(match["number"]))
    return f"{disk_id}-{highest + 1}"


def with_tops(spec: VmSpec, tops: Mapping[str, str]) -> VmSpec:
    """The specification after every disk in `tops` got a new, empty layer of that name on top.

    One that has it already stays as it is.
    """
    return _changed(
        spec,
        lambda disk: (
            disk.model_copy(update={"volume": tops[disk.id], "below": own_layers(disk)})
            if tops.get(disk.id, disk.volume) != disk.volume
            else disk
        ),
    )


def without_tops(spec: VmSpec, tops: Mapping[str, str]) -> VmSpec:
    """What `with_tops` was made from; disks with another layer on top stay as they are."""
    return _changed(
        spec,
        lambda disk: (
            disk.model_copy(update={"volume": disk.below[0], "below": disk.below[1:]})
            if tops.get(disk.id) == disk.volume and disk.below
            else disk
        ),
    )


def mergeable(specs: Iterable[VmSpec]) -> list[Merge]:
    """Every pair of layers that may become one, the disks in their order, lower layers first."""
    every = list(specs)
    needed = {(disk.id, disk.volume) for disk in _disks(every)}
    above: dict[tuple[str, str], set[str]] = {}
    depth: dict[tuple[str, str], int] = {}
    for disk in _disks(every):
        chain = own_layers(disk)
        for height, (upper, lower) in enumerate(itertools.pairwise(chain)):
            above.setdefault((disk.id, lower), set()).add(upper)
            depth[disk.id, lower] = len(chain) - height
    found = [
        Merge(disk, lower, next(iter(uppers)))
        for (disk, lower), uppers in above.items()
        if len(uppers) == 1 and (disk, lower) not in needed
    ]
    return sorted(found, key=lambda each: (each.disk, depth[each.disk, each.lower], each.lower))


def merged(spec: VmSpec, merge: Merge, direction: Direction) -> VmSpec:
    """A specification after a merge, which changes what is read through none of its disks."""
    gone = merge.lower if direction is Direction.UP else merge.upper

    def change(disk: Disk) -> Disk:
        chain = own_layers(disk)
        if disk.id != merge.disk or gone not in chain:
            return disk
        # Only a raw file can be lowest without being qcow2, and it goes where it is copied upwards.
        lowest = VolumeFormat.QCOW2 if chain[-1] == gone else disk.format
        kept = tuple(layer for layer in chain if layer != gone)
        return disk.model_copy(update={"volume": kept[0], "below": kept[1:], "format": lowest})

    return _changed(spec, change)


def gone(merge: Merge, direction: Direction) -> str:
    """The layer that is no more once a merge is recorded."""
    return merge.lower if direction is Direction.UP else merge.upper


def chain_to(specs: Iterable[VmSpec], disk_id: str, layer: str) -> Disk:
    """A disk with `layer` on top, as some specification has it below others. Raises KeyError."""
    for disk in _disks(specs):
        chain = own_layers(disk)
        if disk.id == disk_id and layer in chain:
            at = chain.index(layer)
            return disk.model_copy(update={"volume": layer, "below": chain[at + 1 :]})
    raise KeyError(layer)


def without(spec: VmSpec, disk_id: str, layer: str) -> VmSpec:
    """A specification after a layer became one with its neighbour, whichever that is."""
    return merged(spec, Merge(disk_id, layer, layer), Direction.UP)


def carried(spec: VmSpec, disk_id: str, names: Mapping[str, str], pool: str | None) -> VmSpec:
    """A specification after all layers of a disk were copied to another pool under new names."""
    return _changed(
        spec,
        lambda disk: (
            disk.model_copy(
                update={
                    "volume": names[disk.volume],
                    "below": tuple(names[each] for each in disk.below),
                    "pool": pool,
                }
            )
            if disk.id == disk_id
            else disk
        ),
    )


def depth(spec: VmSpec) -> int:
    """Layers of the deepest disk."""
    return max((len(own_layers(disk)) for disk in spec.disks), default=0)


def _disks(specs: Iterable[VmSpec]) -> Iterable[Disk]:
    return (disk for spec in specs for disk in spec.disks)


def _changed(spec: VmSpec, change: Callable[[Disk], Disk]) -> VmSpec:
    return spec.model_copy(update={"disks": tuple(change(disk) for disk in spec.disks)})
