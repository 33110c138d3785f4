"""What volumes hold, written and copied by qemu-img, wherever they are.

A volume is made empty first and then written to by whoever may read the source: what a broken guest
left in a disk is read with no other rights. What is fresh shows zeros, so only data is written.
"""

import asyncio
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.host.processes import Identity, Processes
from holdfast.spec.attachment import FilePlace, Layer, Place, RbdPlace
from holdfast.spec.units import MIB
from holdfast.spec.vm import VolumeFormat
from holdfast.spec.vm_export import DiskFormat
from holdfast.storage.convert import (
    IMAGE_OPTIONS,
    VOLUME_OPTIONS,
    largest_qcow2,
    make_empty,
    patience,
    take_back,
)
from holdfast.storage.pools.rbd import keys_of
from holdfast.storage.qemu_img import Progress, qemu_img

_FOREIGN_OPTIONS = {
    DiskFormat.VMDK: "subformat=streamOptimized",
    DiskFormat.QCOW2: IMAGE_OPTIONS,
    DiskFormat.VHDX: "subformat=dynamic",
    DiskFormat.RAW: "",
}
_FOREIGN_BLOCKS = 256 * MIB
"""A VHDX file grows by blocks of up to this size."""


async def make_volume(
    processes: Processes,
    target: Place,
    size: int,
    format: VolumeFormat,
    *,
    owner: str,
    below: Place | None = None,
    below_format: str = "qcow2",
) -> None:
    """Make `target` a volume of `size` bytes that shows zeros, or `below`, whose name is only written down.

    Raises NoSpace, ConversionFailed.
    """
    if isinstance(target, FilePlace):
        target.path.unlink(missing_ok=True)
    # -u: what is below is not opened, so nothing in it is read with our rights.
    named = ["-u", "-b", str(below), "-F", below_format] if below else []
    options = ["-o", VOLUME_OPTIONS] if format is VolumeFormat.QCOW2 else []
    arguments = ["create", "-q", "-f", format.value, *options, *named, _name(target), str(size)]
    await qemu_img(processes, arguments, owner=owner, target=_file(target), apparent=_apparent(format, size))


async def resize_volume(
    processes: Processes,
    target: Place,
    size: int,
    format: VolumeFormat,
    *,
    owner: str,
    identity: Identity | None = None,
) -> None:
    """Let a volume show `size` bytes, which is never less than it does. Raises NoSpace, ConversionFailed."""
    node = _node((Layer(place=target, format=format.value),))
    await qemu_img(
        processes,
        ["resize", "-q", f"json:{json.dumps(node)}", str(size)],
        owner=owner,
        target=_file(target),
        identity=identity,
        apparent=_apparent(format, size),
        secrets=await keys_of([target]),
    )


async def flatten(
    processes: Processes,
    layers: Sequence[Layer],
    target: Place,
    size: int,
    format: VolumeFormat,
    *,
    owner: str,
    identity: Identity | None = None,
    progress: Progress | None = None,
    shared: bool = False,
    share_blocks: bool = False,
) -> None:
    """Make `target` a volume of `size` bytes with all that a chain (top first) shows.

    `identity` must be able to read the chain. `shared`: somebody may be writing to it. `share_blocks`: both
    stand on the same blocks where the file system can (copy_file_range(2)); zeroes that were written are not
    looked for then.

    Raises NoSpace, ConversionFailed.
    """
    await fill_volume(
        processes,
        _node(layers),
        target,
        size,
        format,
        owner=owner,
        identity=identity,
        progress=progress,
        secrets=await keys_of([layer.place for layer in layers]),
        shared=shared,
        share_blocks=share_blocks,
    )


async def fill_volume(
    processes: Processes,
    source: Mapping[str, Any],
    target: Place,
    size: int,
    format: VolumeFormat,
    *,
    owner: str,
    identity: Identity | None,
    progress: Progress | None,
    secrets: Mapping[str, bytes] | None = None,
    largest: int | None = None,
    shared: bool = False,
    share_blocks: bool = False,
) -> None:
    """Make `target` a volume of `size` bytes with what a node of QEMU's block layer shows.

    Args:
        source: QAPI BlockdevOptions, the backing of each layer said.
        identity: who reads it and so must be able to.
        secrets: what `source` needs.
        largest: bytes that a file may have, however much `source` turns out to hold; None: all of `size`.
        shared: somebody may be writing to `source`.
        share_blocks: as of `flatten`.

    Raises NoSpace, ConversionFailed.
    """
    await make_volume(processes, target, size, format, owner=owner)
    if identity and not isinstance(target, RbdPlace):
        await asyncio.to_thread(os.chown, target.path, identity.uid, identity.gid)
    into = _options({"driver": format.value, "file": target.protocol()})
    how = (("-U",) if shared else ()) + (("-C",) if share_blocks else ())
    await qemu_img(
        processes,
        [
            *("convert", "-p", "-n", "--target-is-zero", "--target-image-opts", *how),
            *(f"json:{json.dumps(source)}", into),
        ],
        owner=owner,
        target=_file(target),
        identity=identity,
        largest=largest if largest is not None else largest_qcow2(size),
        apparent=_apparent(format, size),
        cpu_seconds=patience(size),
        progress=progress,
        secrets={**await keys_of([target]), **(secrets or {})},
    )


async def to_format(
    processes: Processes,
    layers: Sequence[Layer],
    target: Path,
    size: int,
    format: DiskFormat,
    *,
    owner: str,
    identity: Identity | None = None,
    progress: Progress | None = None,
) -> None:
    """Make `target` (replaced if there) a disk for others with all that a chain shows, durable and ours.

    Raises NoSpace, ConversionFailed; then `target` is gone.
    """
    options = _FOREIGN_OPTIONS[format]
    await asyncio.to_thread(make_empty, target, identity)
    try:
        await qemu_img(
            processes,
            [
                *("convert", "-p", "-O", format.value, *(("-o", options) if options else ())),
                *(f"json:{json.dumps(_node(layers))}", str(target)),
            ],
            owner=owner,
            target=target,
            identity=identity,
            largest=largest_qcow2(size + _FOREIGN_BLOCKS),
            apparent=size if format is DiskFormat.RAW else 0,
            cpu_seconds=patience(size),
            progress=progress,
            secrets=await keys_of([layer.place for layer in layers]),
        )
        await asyncio.to_thread(take_back, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


async def map_chain(
    processes: Processes,
    layers: Sequence[Layer],
    heard: Callable[[bytes], None],
    *,
    owner: str,
    identity: Identity | None = None,
) -> None:
    """Let `heard` have what `qemu-img map --output=json` says of a chain. Raises ConversionFailed."""
    await qemu_img(
        processes,
        ["map", "--output=json", f"json:{json.dumps(_node(layers))}"],
        owner=owner,
        target=None,
        identity=identity,
        cpu_seconds=3600,
        heard=heard,
        secrets=await keys_of([layer.place for layer in layers]),
    )


async def copy_bytes(
    processes: Processes, source: Place, target: Place, *, owner: str, progress: Progress | None = None
) -> None:
    """Make `target` what `source` is, byte for byte; zeros stay holes. Raises NoSpace, ConversionFailed."""
    layers = (Layer(place=source, format="raw"),)
    length = await content_length(processes, source, owner=owner)
    await flatten(processes, layers, target, length, VolumeFormat.RAW, owner=owner, progress=progress)


async def content_length(processes: Processes, place: Place, *, owner: str) -> int:
    """Bytes that a place holds, whatever is in them. Raises ConversionFailed."""
    node = _node((Layer(place=place, format="raw"),))
    done = await qemu_img(
        processes,
        ["info", "-U", "--output", "json", f"json:{json.dumps(node)}"],
        owner=owner,
        target=_file(place),
        secrets=await keys_of([place]),
    )
    return int(json.loads(done.stdout)["virtual-size"])


def _node(layers: Sequence[Layer]) -> dict[str, Any]:
    """A chain as QEMU's block layer takes it (QAPI BlockdevOptions), with the backing always said."""
    top = layers[0]
    node: dict[str, Any] = {"driver": top.format, "file": top.place.protocol()}
    if top.format == "qcow2":
        node["backing"] = _node(layers[1:]) if layers[1:] else None
    return node


def _options(node: Mapping[str, Any], prefix: str = "") -> str:
    """A node in `key=value` syntax, commas doubled (QEMU, util/keyval.c)."""
    parts = [
        _options(value, f"{prefix}{key}.")
        if isinstance(value, Mapping)
        else f"{prefix}{key}={str(value).replace(',', ',,')}"
        for key, value in node.items()
    ]
    return ",".join(parts)


def _name(place: Place) -> str:
    """As `qemu-img create` takes it; RBD's syntax escapes with backslashes (QEMU, block/rbd.c)."""
    if not isinstance(place, RbdPlace):
        return str(place.path)
    parts = (f"{place.pool}/{place.image}", f"id={place.user}", f"conf={place.conf}")
    values = [re.sub(r"([\\:@])", r"\\\1", part) for part in (*parts, f"keyring={place.keyring}")]
    return "rbd:" + ":".join(values)


def _file(place: Place) -> Path | None:
    return None if isinstance(place, RbdPlace) else place.path


def _apparent(format: VolumeFormat, size: int) -> int:
    """A raw file is as long as the disk from the beginning."""
    return size if format is VolumeFormat.RAW else 0
