"""Conversion to qcow2 by qemu-img, within bounds and, where the daemon is root, as nobody.

The target is made empty by us and given to the converting user, so that qemu-img needs no right
to the folder; afterwards it is ours again.
"""

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from holdfast.host.processes import Identity, Processes
from holdfast.spec.attachment import Layer, Place
from holdfast.spec.units import GIB, MIB
from holdfast.spec.vm import VolumeFormat
from holdfast.spec.vm_export import DiskFormat
from holdfast.storage.qemu_img import Progress, qemu_img

SourceFormat = Literal["raw", "qcow2", "vmdk", "vpc", "vhdx"]
"""QEMU's names; `vpc` is VHD."""

IMAGE_OPTIONS = "compat=1.1,cluster_size=64k"
"""Images are only read: plain clusters, whose table for 256 GiB fits QEMU's usual cache."""

VOLUME_OPTIONS = "compat=1.1,cluster_size=128k,extended_l2=on"
"""Volumes are written to: 4 KiB subclusters, so a small write copies little from the image below."""


_FOREIGN_OPTIONS = {
    DiskFormat.VMDK: "subformat=streamOptimized",
    DiskFormat.QCOW2: IMAGE_OPTIONS,
    DiskFormat.VHDX: "subformat=dynamic",
    DiskFormat.RAW: "",
}
_FOREIGN_BLOCKS = 256 * MIB
"""A VHDX file grows by blocks of up to this size."""


async def to_qcow2(
    processes: Processes,
    source: Path,
    format: SourceFormat,
    target: Path,
    *,
    owner: str,
    identity: Identity | None = None,
    progress: Progress | None = None,
    virtual_size: int | None = None,
    options: str = IMAGE_OPTIONS,
) -> None:
    """Make `target` (replaced if there) a qcow2 file with the content of `source`, durable and ours.

    `identity` must be able to read `source`. `virtual_size`, in bytes, bounds what is written.

    Raises:
        NoSpace, ConversionFailed: it could not be made; `target` is gone.
    """
    layers = (Layer.of_file(source, "raw"),)  # only its place is used
    described = {**_node(layers), "driver": format}
    await _convert(processes, described, source, target, owner, identity, progress, virtual_size, options)


async def flatten(
    processes: Processes,
    layers: Sequence[Layer],
    target: Place,
    *,
    owner: str,
    format: VolumeFormat = VolumeFormat.QCOW2,
    identity: Identity | None = None,
    progress: Progress | None = None,
    virtual_size: int | None = None,
) -> None:
    """Make `target` a volume with all that a chain (top first) shows. Raises as `to_qcow2`."""
    options = VOLUME_OPTIONS if format is VolumeFormat.QCOW2 else ""
    path, source = _file(target), _file(layers[0].place)
    await _convert(
        processes, _node(layers), source, path, owner, identity, progress, virtual_size, options, format
    )


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
    path = _file(target)
    path.unlink(missing_ok=True)
    # -u: what is below is not opened, so nothing in it is read with our rights.
    named = ["-u", "-b", str(below), "-F", below_format] if below else []
    options = ["-o", VOLUME_OPTIONS] if format is VolumeFormat.QCOW2 else []
    arguments = ["create", "-q", "-f", format.value, *options, *named, str(path), str(size)]
    await qemu_img(processes, arguments, owner=owner, target=path, apparent=_apparent(format, size))


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
    arguments = ["resize", "-q", f"json:{json.dumps(node)}", str(size)]
    path, apparent = _file(target), _apparent(format, size)
    await qemu_img(processes, arguments, owner=owner, target=path, identity=identity, apparent=apparent)


async def copy_bytes(
    processes: Processes, source: Place, target: Place, *, owner: str, progress: Progress | None = None
) -> None:
    """Make `target` what `source` is, byte for byte; zeros stay holes. Raises as `to_qcow2`."""
    layers = (Layer(place=source, format="raw"),)
    await flatten(processes, layers, target, owner=owner, format=VolumeFormat.RAW, progress=progress)


async def to_format(
    processes: Processes,
    layers: Sequence[Layer],
    target: Path,
    format: DiskFormat,
    *,
    owner: str,
    identity: Identity | None = None,
    progress: Progress | None = None,
    virtual_size: int,
) -> None:
    """Make `target` a disk for others with all that a chain (top first) shows. Raises as `to_qcow2`."""
    await _convert(
        processes,
        _node(layers),
        _file(layers[0].place),
        target,
        owner,
        identity,
        progress,
        virtual_size + _FOREIGN_BLOCKS,
        _FOREIGN_OPTIONS[format],
        format,
    )


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
        target=_file(layers[0].place),
        identity=identity,
        cpu_seconds=3600,
        heard=heard,
    )


def _file(place: Place) -> Path:
    """The file that a place is; every kind of pool that there is keeps files."""
    return Layer(place=place, format="raw").path


def _node(layers: Sequence[Layer]) -> dict[str, Any]:
    """A chain as QEMU's block layer takes it (QAPI BlockdevOptions), with the backing always said."""
    top = layers[0]
    node: dict[str, Any] = {"driver": top.format, "file": top.place.protocol()}
    if top.format == "qcow2":
        node["backing"] = _node(layers[1:]) if layers[1:] else None
    return node


async def _convert(
    processes: Processes,
    node: dict[str, Any],
    source: Path,
    target: Path,
    owner: str,
    identity: Identity | None,
    progress: Progress | None,
    virtual_size: int | None,
    options: str,
    format: VolumeFormat | DiskFormat = VolumeFormat.QCOW2,
) -> None:
    if node["driver"] == "qcow2":
        node.setdefault("backing", None)
    await asyncio.to_thread(_make_empty, target, identity)
    try:
        await qemu_img(
            processes,
            [
                *("convert", "-p", "-O", format.value),
                *(("-o", options) if options else ()),
                *(f"json:{json.dumps(node)}", str(target)),
            ],
            owner=owner,
            target=target,
            identity=identity,
            largest=_largest(virtual_size),
            apparent=_apparent(format, virtual_size or 0),
            cpu_seconds=_patience(source, virtual_size),
            progress=progress,
        )
        await asyncio.to_thread(_take_back, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _apparent(format: VolumeFormat | DiskFormat, size: int) -> int:
    """A raw file is as long as the disk from the beginning."""
    return size if format.value == VolumeFormat.RAW.value else 0


def _largest(virtual_size: int | None) -> int | None:
    """All data and all tables of a qcow2 file of that size."""
    return None if virtual_size is None else virtual_size + virtual_size // 512 + 64 * MIB


def _patience(source: Path, virtual_size: int | None) -> int:
    """CPU seconds: generous for slow hosts and compressed input, yet an end."""
    return 600 + source.stat().st_size // (2 * MIB) + (virtual_size or 0) // GIB


def _make_empty(target: Path, identity: Identity | None) -> None:
    target.unlink(missing_ok=True)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if identity:
            os.fchown(fd, identity.uid, identity.gid)
    finally:
        os.close(fd)


def _take_back(target: Path) -> None:
    """qemu-img does not wait for the disk; we do."""
    fd = os.open(target, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fsync(fd)
    finally:
        os.close(fd)
