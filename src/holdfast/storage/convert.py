"""Conversion to qcow2 by qemu-img, within bounds and, where the daemon is root, as nobody.

The target is made empty by us and given to the converting user, so that qemu-img needs no right
to the folder; afterwards it is ours again.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Any, Literal

from holdfast.host.processes import Identity, Processes
from holdfast.spec.attachment import FilePlace
from holdfast.spec.units import MIB
from holdfast.storage.qemu_img import Progress, qemu_img

SourceFormat = Literal["raw", "qcow2", "vmdk", "vpc", "vhdx"]
"""QEMU's names; `vpc` is VHD."""

IMAGE_OPTIONS = "compat=1.1,cluster_size=64k"
"""Images are only read: plain clusters, whose table for 256 GiB fits QEMU's usual cache."""

VOLUME_OPTIONS = "compat=1.1,cluster_size=128k,extended_l2=on"
"""Volumes are written to: 4 KiB subclusters, so a small write copies little from the image below."""


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
    node: dict[str, Any] = {"driver": format, "file": FilePlace(path=source).protocol()}
    if format == "qcow2":
        node["backing"] = None
    await asyncio.to_thread(make_empty, target, identity)
    try:
        await qemu_img(
            processes,
            ["convert", "-p", "-O", "qcow2", "-o", options, f"json:{json.dumps(node)}", str(target)],
            owner=owner,
            target=target,
            identity=identity,
            largest=largest_qcow2(virtual_size),
            cpu_seconds=patience(source.stat().st_size + (virtual_size or 0)),
            progress=progress,
        )
        await asyncio.to_thread(take_back, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def largest_qcow2(virtual_size: int | None) -> int | None:
    """All data and all tables of a qcow2 file of that size."""
    return None if virtual_size is None else virtual_size + virtual_size // 512 + 64 * MIB


def patience(size: int) -> int:
    """CPU seconds for so many bytes: generous for slow hosts and compressed input, yet an end."""
    return 600 + size // (2 * MIB)


def make_empty(target: Path, identity: Identity | None) -> None:
    """A new file, which `identity` may write to; one that was there is replaced."""
    target.unlink(missing_ok=True)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if identity:
            os.fchown(fd, identity.uid, identity.gid)
    finally:
        os.close(fd)


def take_back(target: Path) -> None:
    """qemu-img does not wait for the disk; we do."""
    fd = os.open(target, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fsync(fd)
    finally:
        os.close(fd)
