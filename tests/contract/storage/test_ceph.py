"""Volumes in a real Ceph cluster of one node."""

import os
from collections.abc import AsyncIterator

import pytest
from ceph_cluster import POOL, CephCluster, installed
from storage_rooms import Rooms
from volume_life import live_through

from holdfast.spec.pool import PoolCreate, PoolHealth, RbdPoolSpec
from holdfast.storage.pools.pool import PoolVanished, VolumeId
from holdfast.storage.pools.rbd import CephFailed, CephPoolTaken

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not installed(), reason="needs root and Ceph's packages"),
]


@pytest.fixture
async def cluster(rooms: Rooms) -> AsyncIterator[CephCluster]:
    made = CephCluster(rooms.state.root.parent / "ceph")
    try:
        yield CephCluster.make(made.folder)
    finally:
        made.close()


async def test_a_cluster(rooms: Rooms, cluster: CephCluster) -> None:
    spec = RbdPoolSpec(ceph_pool=POOL, user="holdfast", conf=cluster.conf, keyring=cluster.keyring)
    wrong = spec.model_copy(update={"user": "nobody"})
    with pytest.raises(CephFailed):
        await rooms.pools.create(PoolCreate(name="bad", spec=wrong))
    view = await rooms.pools.create(PoolCreate(name="ceph", spec=spec))
    assert (view.health, view.target) == (PoolHealth.AVAILABLE, "rbd:vms")
    assert view.capacity and view.free and view.capacity >= view.free
    with pytest.raises(CephPoolTaken):
        await rooms.pools.create(PoolCreate(name="other", spec=spec))
    await live_through(rooms, "ceph")
    pool = rooms.pools.of("ceph")
    cluster.stop_storage()
    assert (await pool.state()).health is PoolHealth.VANISHED
    cluster.start_storage()
    while (await pool.state()).health is PoolHealth.VANISHED:
        pass
    cluster.close()
    assert (await pool.state()).health is PoolHealth.VANISHED
    with pytest.raises(PoolVanished):
        await pool.has(VolumeId("one", "disk0"))
