"""How much data a disk's file claims to hold, counted by its tables before anything is written.

A small file may claim any amount: tables can list one cluster a million times, and compressed clusters take
next to nothing. The tables are those that the conversion follows, so it writes no more than is counted here.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from holdfast.host.processes import Identity, Processes
from holdfast.spec.errors import HoldfastError
from holdfast.spec.units import GIB, KIB
from holdfast.storage.appliances.exposure import exposed, socket_name
from holdfast.storage.appliances.source import HeldFile
from holdfast.storage.convert import VOLUME_OPTIONS
from holdfast.storage.formats.reading import Reader
from holdfast.storage.formats.vmdk_stream import is_stream, layout
from holdfast.storage.qemu_img import qemu_img

_MOST_EXPANSION = 200
"""Times its size that a compressed disk may become. Zeros take no room, and real data packs far less well."""
_CLUSTER = 128 * KIB
"""Of `VOLUME_OPTIONS`."""
_CPU_SECONDS = 60
"""Enough for the tables of some 30 TiB whose every cluster lies elsewhere."""


def most_held(file_size: int) -> int:
    """Bytes of data that a file of that size can honestly hold."""
    return file_size * _MOST_EXPANSION + GIB


async def data_claimed(
    processes: Processes,
    held: HeldFile,
    format: str,
    size: int,
    *,
    sockets: Path,
    owner: str,
    identity: Identity | None,
) -> int:
    """Bytes that a volume takes for the data of a disk, beside its tables; never more than `size`.

    What cannot be counted is taken for as much as the file can honestly hold.

    Args:
        format: QEMU's name.
        size: bytes that the guest sees.
        sockets: a folder with a short path that `identity`, who reads the file, may pass through.
    """

    async def work(node: dict[str, Any]) -> int:
        source = {"driver": format, "file": node, **({"backing": None} if format == "qcow2" else {})}
        done = await qemu_img(
            processes,
            [
                *("measure", "--output=json", "-O", "qcow2", "-o", VOLUME_OPTIONS),
                f"json:{json.dumps(source)}",
            ],
            owner=owner,
            target=None,
            identity=identity,
            cpu_seconds=_CPU_SECONDS,
        )
        measured = json.loads(done.stdout)
        # The two differ by the clusters without data (QEMU, block/qcow2.c, qcow2_measure).
        missing = measured["fully-allocated"] - measured["required"]
        return -(-size // _CLUSTER) * _CLUSTER - int(missing)

    try:
        found = await asyncio.to_thread(_listed, held)
        if found is None:
            path = sockets / socket_name()
            found = await exposed(processes, held, path, work, owner=owner, identity=identity)
    except (HoldfastError, OSError, ValueError, KeyError, TypeError):  # whatever a foreign file made of it
        found = most_held(held.size)
    return max(0, min(found, size))


def _listed(held: HeldFile) -> int | None:
    """Bytes of the grains of a streamOptimized VMDK; None: it is none. Raises as `vmdk_stream.layout`."""
    with Reader.within(held.fd, held.offset, held.size, held.name) as reader:
        if not is_stream(reader):
            return None
        found = layout(reader)
        return found.listed * found.grain
