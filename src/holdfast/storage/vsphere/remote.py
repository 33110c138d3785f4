"""The disks of a VM of vSphere as remote disks, as they were at one moment.

    snapshot ──▶ flat file readable? ── yes ─▶ ranges of it
                        └──────────── no ──▶ export lease, one for all disks

A flat file below a snapshot does not change while the VM writes above it, so it is the snapshot's
content for as long as it is the only one.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from holdfast.storage.remote_disk import Area, Piece, RemoteDisk, merged
from holdfast.storage.vsphere.lease import ExportedDisk, ExportLease
from holdfast.storage.vsphere.machine import Machine, SnapshotDisk
from holdfast.storage.vsphere.refusals import VsphereDiskUnreadable
from holdfast.storage.vsphere.session import asked
from holdfast.storage.vsphere.transfer import ExportStream, FlatFile, Patience, Server, flat_url

_GAP = 256 * 1024
"""Bytes between two areas that are read along rather than asked about apart."""
_TOUCH_SECONDS = 300.0


class _Content(Protocol):
    def read(self, areas: Sequence[Area]) -> AsyncGenerator[Piece, None]: ...


@dataclass(frozen=True)
class VsphereDisk:
    """A RemoteDisk."""

    machine: Machine
    snapshot: str | None
    """None: the VM is off, and is read as it is."""
    disk: SnapshotDisk
    content: _Content

    @property
    def size(self) -> int:
        return self.disk.size

    async def areas(self, since: str | None) -> tuple[Area, ...]:
        """Raises ChangesUnknown, and as `Session.asking`."""
        if self.snapshot is None or self.disk.change_id is None or (since is None and not self.disk.plain):
            # What lies below another snapshot may have been written before changes were tracked.
            return (Area(0, self.size),)
        found = await asked(self.machine.session, self.machine.changed, self.snapshot, self.disk, since)
        return merged(found, _GAP)

    def read(self, areas: Sequence[Area]) -> AsyncGenerator[Piece, None]:
        return self.content.read(areas)


@contextlib.asynccontextmanager
async def remote_disks(
    machine: Machine, snapshot: str | None, patience: Patience | None = None
) -> AsyncIterator[dict[int, RemoteDisk]]:
    """By device key. `snapshot` None: the VM is off.

    Raises VsphereDiskUnreadable, VsphereLeaseLost, and as `Session.asking`.
    """
    patience = patience or Patience()
    session = machine.session
    disks = await asked(session, machine.disks, snapshot)
    server = Server(f"https://{session.address.server}", session.trust.context, _cookie(machine), patience)
    flat = await _flat(server, machine, disks) if snapshot is not None else None
    if flat is not None:
        yield {key: VsphereDisk(machine, snapshot, disk, flat[key]) for key, disk in disks.items()}
        return
    lease = ExportLease(machine, snapshot)
    whole = False

    async def lost() -> str | None:
        return await asked(session, lease.lost)

    try:
        await asked(session, lease.open)
        devices = await asked(session, machine.devices, snapshot)
        exported = await asked(session, lease.disks, devices)
        yield {
            key: VsphereDisk(
                machine,
                snapshot,
                disk,
                ExportStream(server_of(exported[key], server), exported[key].url, disk.size, lost),
            )
            for key, disk in disks.items()
        }
        whole = True
    finally:
        await asyncio.to_thread(lease.close, whole)


def server_of(disk: ExportedDisk, server: Server) -> Server:
    """A host behind the server is believed by its own certificate, and is not told the session."""
    return replace(server, context=disk.trust.context, cookie=server.cookie if disk.own else _no_cookie)


async def _no_cookie() -> str:
    return ""


async def _flat(
    server: Server, machine: Machine, disks: dict[int, SnapshotDisk]
) -> dict[int, FlatFile] | None:
    """Every disk by its flat file; None: not all can be read so."""
    found: dict[int, FlatFile] = {}
    for key, disk in disks.items():
        if not disk.plain:
            return None
        try:
            file = FlatFile(server, flat_url(server.url, disk.file, machine.datacenter), disk.size)
        except VsphereDiskUnreadable:
            return None
        if not await file.readable():
            return None
        found[key] = file
    return found


def _cookie(machine: Machine) -> Callable[[], Awaitable[str]]:
    """The session's, which is looked after every few minutes so that it does not run out."""
    touched = asyncio.get_running_loop().time()
    lock = asyncio.Lock()

    async def cookie() -> str:
        nonlocal touched
        now = asyncio.get_running_loop().time()
        async with lock:
            if now - touched > _TOUCH_SECONDS:
                await asked(machine.session, machine.session.touch)
                touched = now
        return machine.session.cookie

    return cookie
