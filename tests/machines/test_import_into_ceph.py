"""VMs brought over into a pool of a real Ceph cluster of one node: from an archive, and from a vCenter."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from appliances import ova
from boot_disks import boot_disk
from ceph_cluster import POOL, CephCluster, installed
from fake_vsphere import PASSWORD, USER, FakeVsphere, Trouble, serving
from invariants import check_invariants
from live_host import LiveHost, live_host
from vsphere_vms import FakeDisk, FakeVm

from holdfast.cli.import_sources import sources_at
from holdfast.cli.importing import hand_over
from holdfast.spec.operation import Operation, OperationState

MIB = 1 << 20
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0 or not installed(), reason="needs root and Ceph's packages"),
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHost]:
    with live_host(tmp_path_factory.mktemp("ceph")) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(host: LiveHost) -> Iterator[CephCluster]:
    made = CephCluster(host.state.root.parent / "ceph")
    try:
        CephCluster.make(made.folder)
        spec = {"kind": "rbd", "ceph_pool": POOL, "user": "holdfast"}
        spec |= {"conf": str(made.conf), "keyring": str(made.keyring)}
        host.call("POST", "/v1/pools", {"name": "ceph", "spec": spec})
        yield made
    finally:
        made.close()


def rbd(cluster: CephCluster, *arguments: str) -> str:
    who = ["--conf", cluster.conf, "--keyring", cluster.keyring, "--id", "holdfast", "--pool", POOL]
    return subprocess.run(["rbd", *who, *arguments], check=True, capture_output=True, text=True).stdout


def volumes(cluster: CephCluster) -> list[str]:
    """All but the pool's mark."""
    return [name for name in rbd(cluster, "ls").split() if name.startswith("hf.")]


def require_same(cluster: CephCluster, image: str, raw: Path) -> None:
    exported = raw.with_suffix(".exported")
    rbd(cluster, "export", "--no-progress", image, str(exported))
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, exported], check=True)
    exported.unlink()


def test_an_archive_is_brought_into_the_cluster_also_after_a_kill(
    host: LiveHost, cluster: CephCluster, tmp_path: Path
) -> None:
    loader, raw = tmp_path / "loader", tmp_path / "disk.raw"
    loader.write_bytes(random.Random(1).randbytes(3 * MIB))
    boot_disk(raw, {"EFI/BOOT/BOOTX64.EFI": loader})
    with raw.open("ab") as file:
        file.write(random.Random(2).randbytes(64 * MIB))
    path = ova(tmp_path / "a.ova", "web", "vsphere", raw, "raw")
    with host.client() as client:
        body: dict[str, Any] = {"files": hand_over(client, sources_at(path, [])[0]), "pools": {"*": "ceph"}}
    plan = host.call("POST", "/v1/imports/plan", body)
    (room,) = [each for each in plan["space"] if each["pool"] == "ceph"]
    assert 64 * MIB < room["needed"] < room["free"], plan
    operation = Operation.model_validate(host.call("POST", "/v1/imports", body))
    deadline = time.monotonic() + 60
    while not any(name.endswith(".part") for name in volumes(cluster)):
        assert time.monotonic() < deadline, host.tail()
    host.kill()
    host.start()
    ended = host.end_of(operation)
    assert ended.state is OperationState.SUCCEEDED, ended
    assert volumes(cluster) == ["hf.web.disk0"]
    require_same(cluster, "hf.web.disk0", raw)
    host.do("DELETE", "/v1/vms/web")
    assert volumes(cluster) == [] and check_invariants(host) == []


def test_a_manifest_that_lies_leaves_nothing_in_the_cluster(
    host: LiveHost, cluster: CephCluster, tmp_path: Path
) -> None:
    loader = tmp_path / "loader"
    loader.write_bytes(random.Random(1).randbytes(3 * MIB))
    raw = boot_disk(tmp_path / "disk.raw", {"EFI/BOOT/BOOTX64.EFI": loader})
    path = ova(tmp_path / "a.ova", "liar", "vsphere", raw, "raw", lie=True)
    with host.client() as client:
        body: dict[str, Any] = {"files": hand_over(client, sources_at(path, [])[0]), "pools": {"*": "ceph"}}
    ended = host.end_of(Operation.model_validate(host.call("POST", "/v1/imports", body)))
    assert ended.error is not None and ended.error["id"] == "manifest-mismatch", ended
    assert volumes(cluster) == [] and check_invariants(host) == []


def test_a_vm_of_a_vcenter_comes_into_the_cluster(
    host: LiveHost, cluster: CephCluster, tmp_path: Path
) -> None:
    disk = FakeDisk(2000, bytearray(16 * MIB))
    disk.write(0, random.Random(3).randbytes(4 * MIB))
    disk.write(8 * MIB + 4096, b"text " * 20_000)
    with serving(FakeVsphere([FakeVm("vm-8", "cold", [disk], running=False)], Trouble()), tmp_path) as fake:
        source = {"address": f"{fake.address}/cold", "user": USER, "password": PASSWORD}
        source["thumbprint"] = fake.thumbprint
        body = {"source": source, "name": "cold", "tpm": False, "pools": {"*": "ceph"}}
        host.do("POST", "/v1/imports/vsphere", body)
    (tmp_path / "raw").write_bytes(disk.content)
    require_same(cluster, "hf.cold.disk0", tmp_path / "raw")
    key = cluster.keyring.read_text().split("key = ")[1].split()[0]
    assert key not in host.log.read_text()
    host.do("DELETE", "/v1/vms/cold")
    assert volumes(cluster) == [] and check_invariants(host) == []
