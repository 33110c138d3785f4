"""Disks of VMs that stand on a point of a replica: read by their VM's user, by nobody else, over restarts."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_open_point import SIZE, Source

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Identity, Processes
from holdfast.replication.origins import ReplicaOrigins
from holdfast.replication.store.replica import Replica
from holdfast.spec.vm import Disk, ReplicaOrigin
from holdfast.storage.images import ImageStore
from holdfast.storage.pools.book import Pools
from holdfast.storage.volumes import OriginMissing, Volumes

MINE = Identity(64321, 64321) if os.geteuid() == 0 else None
as_root = pytest.mark.skipif(MINE is None, reason="VMs run as users of their own where the daemon is root")


@dataclass
class Rig:
    state: StateFolder
    volumes: Volumes
    origins: ReplicaOrigins
    replica: Replica
    source: Source

    def disk(self, number: int) -> Disk:
        token = self.replica.open_point(number).token
        return Disk(
            id="disk0",
            volume="disk0",
            size=SIZE,
            origin=ReplicaOrigin(replica="web", token=token, disk="disk"),
        )

    async def make(self, disk: Disk) -> None:
        await self.volumes.create(
            "web", disk, copy_of=None, identity=MINE, operation="test", progress=lambda *_: None
        )

    async def content(self, disk: Disk) -> bytes:
        """What the VM's user reads: copied into a volume that stands alone."""
        alone = Disk(id="disk0", volume="disk0", size=SIZE)
        await self.volumes.clone(
            "web", disk, "copy", alone, identity=MINE, operation="test", progress=lambda *_: None
        )
        raw = self.state.root / "raw"
        path = self.volumes.chain("copy", alone)[0].path
        await asyncio.to_thread(subprocess.run, ["qemu-img", "convert", "-O", "raw", path, raw], check=True)
        return raw.read_bytes()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    root = Path(tempfile.mkdtemp(prefix="hf-origins-"))
    root.chmod(0o711)
    state = StateFolder(root / "a,b: c", root / "r")  # characters that QEMU's option syntax would split at
    state.prepare()
    catalog, processes = Catalog.open(state.catalog), Processes(state)
    images, pools = ImageStore(catalog, state), Pools(catalog, EventLog(catalog), state, processes)
    for vm in ("web", "copy"):
        state.vm(vm).mkdir(mode=0o711)
    (state.replicas / "web").mkdir(mode=0o700)
    replica = Replica(state.replicas / "web", largest_file=500 * 4096)
    origins = ReplicaOrigins(state.replicas)
    volumes = Volumes(images, pools, processes, origins)
    source = Source(replica, 7)
    for _ in range(12):
        source.cycle()
    yield Rig(state, volumes, origins, replica, source)
    catalog.close()
    assert processes.find() == []
    shutil.rmtree(root)


async def test_a_disk_over_a_point_shows_it_to_its_vm_while_cycles_go_on(rig: Rig) -> None:
    disk = rig.disk(9)
    assert len(rig.volumes.chain("web", disk)) >= 3  # its own, and more than one file of the journal
    await rig.make(disk)
    await rig.volumes.require("web", disk)
    rig.source.cycle()
    rig.replica.prune([])
    assert await rig.content(disk) == rig.source.sent[9]


@as_root
async def test_nobody_else_reads_a_replica_and_afterwards_nobody(rig: Rig) -> None:
    assert MINE is not None
    disk = rig.disk(9)
    paths = [layer.place.path for layer in rig.origins.layers(disk.origin, "disk0")]  # type: ignore[arg-type,union-attr]

    def readable(uid: int) -> set[bool]:
        command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "head", "-c1"]
        return {subprocess.run([*command, path], capture_output=True).returncode == 0 for path in paths}

    assert readable(MINE.uid) == {False}
    await rig.make(disk)
    assert readable(MINE.uid) == {True}
    assert readable(MINE.uid + 1) == {False}
    assert all(path.stat().st_mode & 0o777 == 0o640 and path.stat().st_uid == 0 for path in paths)
    rig.origins.revoke("web")
    assert (rig.state.replicas / "web").stat().st_mode & 0o777 == 0o700
    assert readable(MINE.uid) == {False}
    await rig.volumes.grant("web", disk, MINE)
    assert readable(MINE.uid) == {True}


async def test_a_point_that_was_closed_is_missed_before_a_start(rig: Rig) -> None:
    disk = rig.disk(9)
    await rig.make(disk)
    assert disk.origin is not None
    rig.replica.close_point(disk.origin.token)
    with pytest.raises(OriginMissing):
        await rig.volumes.require("web", disk)
    with pytest.raises(OriginMissing):
        rig.volumes.chain("web", disk)
