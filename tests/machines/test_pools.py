"""Disks in pools under real guests: a pool fills up, is renamed in, and is kept from deletion."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ceph_cluster import POOL, CephCluster, installed
from invariants import check_invariants
from live_host import LiveHost
from loop_files import LoopFile
from small_guest import SmallGuest
from small_vms import small_vm

from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import OperationState
from holdfast.spec.vm import VmState

_MANY = 10  # more than a pool has threads
MIB = 1 << 20
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems of its own")
# Past the guest's cache: what waits to be written fills its memory, and the agent would be killed for it.
_WRITER = """
dd if=/dev/urandom of=/tmp/part bs=1M count=8 2>/dev/null
( sleep 2  # until the agent has said that this began
  for at in 0 8 16 24 32; do
    dd if=/tmp/part of=/dev/vda bs=1M seek=$at oflag=direct conv=fsync || echo failed at $at
  done; echo written ) >/tmp/log 2>&1 </dev/null &
"""

_SUMS = """
for at in 0 8 16 24 32; do dd if=/dev/vda bs=1M skip=$at count=8 iflag=direct 2>/dev/null | md5sum; done
md5sum </tmp/part
"""


@pytest.fixture
def small_pool(host: LiveHost) -> Iterator[LoopFile]:
    """An ext4 of 64 MiB, mounted beside the daemon's state."""
    loop = LoopFile.make(host.state.root.parent, "ext4", 64 * MIB)
    yield loop
    loop.unmount()


def fill(root: Path, left: int) -> Path:
    """Leave some bytes free."""
    filler = root / "lost+found" / "filler"
    found = os.statvfs(root)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - left)
    return filler


def wait_for(what: Any, limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def require_written(host: LiveHost, name: str) -> str:
    """The writer saw no error, and all of it is on the disk; returns the digest of one part."""
    assert "failed" not in host.run_in(name, "cat /tmp/log")
    assert "I/O error" not in host.run_in(name, "dmesg")
    sums = host.run_in(name, _SUMS).split("\n")
    assert len({each for each in sums if each}) == 1, sums
    return sums[0]


def test_a_full_pool(host: LiveHost, small: SmallGuest, small_pool: LoopFile) -> None:
    """The writer pauses and says so, also to a daemon that was killed meanwhile; with space it goes on."""
    request = {"name": "tight", "spec": {"kind": "directory", "path": str(small_pool.root)}}
    host.call("POST", "/v1/pools", request)
    disks = [{"size": "64MiB", "pool": "tight"}]
    host.do("POST", "/v1/vms", small_vm("web", small.append, disks=disks, start=True))
    host.wait_agent("web")
    filler = fill(small_pool.root, 12 * MIB)
    host.run_in("web", _WRITER)
    paused = host.wait_state("web", VmState.PAUSED)
    assert any("Waits for space in pool 'tight'" in each for each in paused.notices), paused.notices
    wait_for(lambda: host.call("GET", "/v1/pools/tight")["health"] == "full")
    host.kill()
    host.start()
    wait_for(lambda: any("Waits for space" in each for each in host.vm("web").notices))
    time.sleep(2)
    assert host.vm("web").state is VmState.PAUSED, "there is no space yet"
    filler.unlink()
    host.wait_state("web", VmState.RUNNING)
    wait_for(lambda: "written" in host.run_in("web", "cat /tmp/log"))
    part = require_written(host, "web")
    assert not [each for each in host.vm("web").notices if "Waits" in each]
    events = [(each["kind"], each["subject"]) for each in host.call("GET", "/v1/events/recent", limit=500)]
    assert ("vm.waits-for-space", "web") in events and ("vm.resumed", "web") in events
    # What is used stays; a new name takes the volumes along.
    with pytest.raises(RemoteError) as caught:
        host.call("DELETE", "/v1/pools/tight")
    assert (caught.value.wire_id, caught.value.detail) == ("pool-in-use", {"vms": ["web"]})
    host.call("POST", "/v1/vms/web/kill")
    host.call("POST", "/v1/vms/web/rename", {"name": "web two"})
    assert [path.name for path in (small_pool.root / "web two").iterdir()] == ["disk0.qcow2"]
    host.do("POST", "/v1/vms/web%20two/start")
    host.wait_agent("web%20two")
    assert part in host.run_in("web%20two", "dd if=/dev/vda bs=1M count=8 2>/dev/null | md5sum")
    host.do("DELETE", "/v1/vms/web%20two", force="true")
    assert {entry.name for entry in small_pool.root.iterdir()} == {".holdfast-pool", "lost+found"}
    host.call("DELETE", "/v1/pools/tight")
    check_invariants(host)


def test_a_pool_that_stops_answering(host: LiveHost, small: SmallGuest, small_pool: LoopFile) -> None:
    """Its writers wait, a killed daemon comes back, everybody else is served; then all goes on."""
    spec = {"kind": "directory", "path": str(small_pool.root)}
    host.call("POST", "/v1/pools", {"name": "slow", "spec": spec})
    disks = [{"size": "64MiB", "pool": "slow"}]
    host.do("POST", "/v1/vms", small_vm("web", small.append, disks=disks, start=True))
    host.do("POST", "/v1/vms", small_vm("beside", small.append, start=True))
    for name in ("web", "beside"):
        host.wait_agent(name)
    with small_pool.frozen():
        host.run_in("web", _WRITER)
        host.kill()  # before threads of its own wait: the kernel ends none that writes here
        host.start()
        _answers(host)
        waiting = [_begun_in("slow", host, f"vm{number}", small) for number in range(_MANY)]
        _answers(host)
        assert "written" not in host.run_in("web", "cat /tmp/log"), "it was to wait"
        assert not [each for each in waiting if host.operation(each).state.ended]
    wait_for(lambda: "written" in host.run_in("web", "cat /tmp/log"))
    require_written(host, "web")
    for number, operation in enumerate(waiting):
        assert host.end_of(host.operation(operation)).state is OperationState.SUCCEEDED
        host.do("DELETE", f"/v1/vms/vm{number}")
    for name in ("web", "beside"):
        assert host.vm(name).state is VmState.RUNNING
        host.do("DELETE", f"/v1/vms/{name}", force="true")
    check_invariants(host)


def _begun_in(pool: str, host: LiveHost, name: str, small: SmallGuest) -> str:
    """A VM that cannot be made until its pool answers; returns the id of the operation."""
    request = small_vm(name, small.append, disks=[{"size": "8MiB", "pool": pool}])
    return str(host.call("POST", "/v1/vms", request)["id"])


def _answers(host: LiveHost) -> None:
    """Whoever asks for lists, or works on what has nothing to do with the pool, is not kept waiting."""
    for path in ("vms", "pools", "pools/slow", "vms/web", "vms/web/disks", "operations", "images"):
        begun = time.monotonic()
        host.call("GET", f"/v1/{path}")
        assert time.monotonic() - begun < 20, path
    begun = time.monotonic()
    host.wait_agent("beside")
    host.run_in("beside", "dd if=/dev/urandom of=/dev/vda bs=1M count=4 conv=fsync 2>/dev/null")
    host.do("POST", "/v1/vms/beside/disks", {"size": "8MiB"})
    host.do("DELETE", "/v1/vms/beside/disks/disk1")
    assert time.monotonic() - begun < 60


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="needs Ceph's packages")
def test_a_cluster_that_goes_away(host: LiveHost, small: SmallGuest) -> None:
    """Its storage daemon is killed under a VM that writes: I/O waits, and goes on when it is back."""
    cluster = CephCluster(host.state.root.parent / "ceph")
    try:
        CephCluster.make(cluster.folder)
        spec = {"kind": "rbd", "ceph_pool": POOL, "user": "holdfast"}
        spec |= {"conf": str(cluster.conf), "keyring": str(cluster.keyring)}
        host.call("POST", "/v1/pools", {"name": "ceph", "spec": spec})
        disks = [{"size": "64MiB", "pool": "ceph"}]
        host.do("POST", "/v1/vms", small_vm("web", small.append, disks=disks, start=True))
        host.wait_agent("web")
        key = cluster.keyring.read_text().split("key = ")[1].split()[0]
        assert not [part for qemu in host.qemus() for part in qemu.argv if key in part]
        cluster.stop_storage()
        host.run_in("web", _WRITER)
        wait_for(lambda: host.call("GET", "/v1/pools/ceph")["health"] == "vanished")
        assert host.vm("web").state is VmState.RUNNING, "it waits, and knows nothing of it"
        cluster.start_storage()
        host.wait_agent("web")
        wait_for(lambda: "written" in host.run_in("web", "cat /tmp/log"), 120)
        require_written(host, "web")
        wait_for(lambda: host.call("GET", "/v1/pools/ceph")["health"] == "available")
        host.do("DELETE", "/v1/vms/web", force="true")
        host.call("DELETE", "/v1/pools/ceph")
        check_invariants(host)
    finally:
        cluster.close()
