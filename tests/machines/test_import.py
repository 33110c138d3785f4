"""VMs of other platforms in a live daemon: planned, brought over out of their archive, refused, cut off."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from appliances import ova, stream
from boot_disks import boot_disk
from debian_guest import NAME, with_debian
from invariants import check_invariants
from live_host import LiveHost, live_host

from holdfast.cli.import_sources import sources_at
from holdfast.cli.importing import hand_over
from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState

MARKS_END = 128 * 1024
"""Bytes at the beginning of a volume within which it is marked how far it is."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHost]:
    with live_host(tmp_path_factory.mktemp("import")) as running:
        yield running


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk that UEFI would start from, with some data that does not pack."""
    folder = tmp_path_factory.mktemp("disk")
    loader = folder / "loader"
    loader.write_bytes(random.Random(1).randbytes(3 << 20))
    return boot_disk(folder / "disk.raw", {"EFI/BOOT/BOOTX64.EFI": loader})


def request(host: LiveHost, path: Path, **more: Any) -> dict[str, Any]:
    with host.client() as client:
        return {"files": hand_over(client, sources_at(path, [])[0]), **more}


def same(raw: Path, volume: Path) -> bool:
    argv = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), str(volume)]
    return subprocess.run(argv, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("dialect", ["vsphere", "virtualbox"])
def test_an_archive_is_planned_and_brought_over(
    shared: LiveHost, disk: Path, tmp_path: Path, dialect: str
) -> None:
    path = ova(tmp_path / "a.ova", f"from-{dialect}", dialect, disk, "raw")
    path.chmod(0o600)  # the converting user may not open it: it is shown to it
    body = request(shared, path)
    plan = shared.call("POST", "/v1/imports/plan", body)
    assert plan["importable"] and plan["dialect"] == dialect and plan["manifest"] == "SHA256", plan
    found = {each["id"] for each in plan["findings"]}
    assert "virtio-drivers-unknown" in found and "disk-size-differs" not in found
    shared.do("POST", "/v1/imports", body)
    vm = shared.vm(f"from-{dialect}")
    assert vm.spec.memory == 1 << 30 and vm.spec.disks[0].size == disk.stat().st_size
    if dialect == "virtualbox":
        assert vm.id == "b2c9a8f0-5a65-4d11-9c39-0f2f5a1c7e55"
        assert vm.spec.nics[0].mac == "08:00:27:a1:b2:c3"
    assert same(disk, shared.state.vm(vm.name) / "disk0.qcow2")
    check_invariants(shared)
    shared.do("DELETE", f"/v1/vms/{vm.name}")


def test_a_manifest_that_lies_takes_everything_back(shared: LiveHost, disk: Path, tmp_path: Path) -> None:
    path = ova(tmp_path / "a.ova", "liar", "vsphere", disk, "raw", lie=True)
    ended = shared.end_of(Operation.model_validate(shared.call("POST", "/v1/imports", request(shared, path))))
    assert ended.state is OperationState.FAILED
    assert ended.error is not None and ended.error["id"] == "manifest-mismatch", ended
    assert check_invariants(shared) == []


def test_an_archive_that_was_cut_off_is_refused_before_any_change(
    shared: LiveHost, disk: Path, tmp_path: Path
) -> None:
    path = ova(tmp_path / "a.ova", "short", "vsphere", disk, "raw")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(RemoteError) as refused:
        shared.call("POST", "/v1/imports", request(shared, path))
    assert refused.value.wire_id == "archive-truncated"
    assert check_invariants(shared) == []


def test_a_file_that_was_changed_after_it_was_handed_over_is_refused(
    shared: LiveHost, disk: Path, tmp_path: Path
) -> None:
    path = ova(tmp_path / "a.ova", "changed", "vsphere", disk, "raw")
    body = request(shared, path)
    with path.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(RemoteError) as refused:
        shared.call("POST", "/v1/imports", body)
    assert refused.value.wire_id == "source-file-changed"


def test_a_machine_that_only_starts_by_bios_is_refused_with_what_to_do(
    shared: LiveHost, tmp_path: Path
) -> None:
    raw = tmp_path / "bios.raw"
    raw.write_bytes(bytes(8 << 20))
    subprocess.run(["sfdisk", "-q", raw], input="label: dos\nstart=2048\n", text=True, check=True)
    body = request(shared, ova(tmp_path / "a.ova", "old", "virtualbox", raw, "raw"))
    assert not shared.call("POST", "/v1/imports/plan", body)["importable"]
    with pytest.raises(RemoteError) as refused:
        shared.call("POST", "/v1/imports", body)
    assert refused.value.wire_id == "not-importable" and refused.value.value == ["bios-only"]
    assert "mbr2gpt" in refused.value.message


@pytest.fixture(scope="module")
def large(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk with 320 MiB that do not pack; its stream, with the ending `.vmdk`, lies beside it."""
    raw = tmp_path_factory.mktemp("large") / "large.raw"
    source = random.Random(2)
    raw.write_bytes(disk.read_bytes() + b"".join(source.randbytes(64 << 20) for _ in range(5)))
    stream(raw, raw.with_suffix(".vmdk"))
    return raw


def begun_halfway(
    host: LiveHost, path: Path, folder: Path | None = None, **more: Any
) -> tuple[Operation, Path]:
    """An import of an archive, its disk partly copied, and what is there of it."""
    operation = Operation.model_validate(host.call("POST", "/v1/imports", request(host, path, **more)))
    folder = folder or host.state.vms
    deadline = time.monotonic() + 60
    while not (parts := [*folder.glob("*/.disk0.qcow2.part")]) or not marked(parts[0]):
        assert time.monotonic() < deadline, host.end_of(operation, 1)
        time.sleep(0.002)
    return operation, parts[0]


def marked(part: Path) -> bool:
    with part.open("rb") as file:
        head = file.read(MARKS_END)
    return b"hf-mark1" in head


def test_a_copy_goes_on_in_its_middle_after_kill_9(shared: LiveHost, large: Path, tmp_path: Path) -> None:
    path = ova(tmp_path / "a.ova", "killed", "vsphere", large.with_suffix(".vmdk"), "vmdk")
    operation, part = begun_halfway(shared, path)
    shared.kill()
    assert part.exists() and not (part.parent / "disk0.qcow2").exists()
    shared.start()
    ended = shared.end_of(operation)
    assert ended.state is OperationState.SUCCEEDED, ended
    assert ended.result is not None
    assert 0.15 < ended.result["resumed_at"]["disk0"] / path.stat().st_size < 0.85, ended
    assert same(large, shared.state.vm("killed") / "disk0.qcow2")
    assert not part.exists()
    check_invariants(shared)
    shared.do("DELETE", "/v1/vms/killed")


def test_a_cancelled_copy_leaves_nothing(shared: LiveHost, large: Path, tmp_path: Path) -> None:
    path = ova(tmp_path / "a.ova", "cancelled", "vsphere", large.with_suffix(".vmdk"), "vmdk")
    operation, part = begun_halfway(shared, path)
    shared.call("POST", f"/v1/operations/{operation.id}/cancel")
    assert shared.end_of(operation).state is OperationState.CANCELLED
    assert not part.parent.exists()
    assert [each.name for each in shared.state.scratch.iterdir() if each.name != "uploads"] == []
    assert check_invariants(shared) == []


@pytest.fixture(scope="module")
def pools(shared: LiveHost, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pools of directories, one of them of raw volumes."""
    made = {}
    for name in ("thin", "plain"):
        made[name] = shared.state.root.parent / name
        made[name].mkdir()
        spec = {"kind": "directory", "path": str(made[name]), "format": "raw" if name == "plain" else "qcow2"}
        shared.call("POST", "/v1/pools", {"name": name, "spec": spec})
    return made


def test_disks_go_into_pools(shared: LiveHost, pools: dict[str, Path], disk: Path, tmp_path: Path) -> None:
    path = ova(tmp_path / "a.ova", "pooled", "vsphere", disk, "raw")
    for name, form in (("thin", "qcow2"), ("plain", "raw")):
        body = request(shared, path, pools={"*": name})
        plan = shared.call("POST", "/v1/imports/plan", body)
        assert plan["disks"][0]["pool"] == name and {each["pool"] for each in plan["space"]} == {
            "local",
            name,
        }
        shared.do("POST", "/v1/imports", body)
        volume = pools[name] / "pooled" / f"disk0.{form}"
        compare = ["qemu-img", "compare", "-f", "raw", "-F", form, disk, volume]
        subprocess.run(compare, check=True, stdout=subprocess.DEVNULL)
        assert not list(shared.state.vm("pooled").glob("disk0*"))
        check_invariants(shared)
        shared.do("DELETE", "/v1/vms/pooled")
        assert [each.name for each in pools[name].iterdir() if each.is_dir()] == []
    with pytest.raises(RemoteError) as refused:
        shared.call("POST", "/v1/imports", request(shared, path, pools={"*": "nowhere"}))
    assert refused.value.wire_id == "not-importable" and refused.value.value == ["pool-not-found"]


def test_a_copy_into_a_pool_goes_on_and_a_cancelled_one_leaves_nothing(
    shared: LiveHost, pools: dict[str, Path], large: Path, tmp_path: Path
) -> None:
    path = ova(tmp_path / "a.ova", "pooled", "vsphere", large.with_suffix(".vmdk"), "vmdk")
    operation, part = begun_halfway(shared, path, pools["thin"], pools={"*": "thin"})
    shared.kill()
    shared.start()
    ended = shared.end_of(operation)
    assert ended.state is OperationState.SUCCEEDED, ended
    assert ended.result is not None and ended.result["resumed_at"]["disk0"] > 0
    assert same(large, part.with_name("disk0.qcow2"))
    shared.do("DELETE", "/v1/vms/pooled")
    operation, part = begun_halfway(shared, path, pools["thin"], pools={"*": "thin"})
    shared.call("POST", f"/v1/operations/{operation.id}/cancel")
    assert shared.end_of(operation).state is OperationState.CANCELLED
    assert not part.parent.exists()
    assert check_invariants(shared) == []


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["vsphere", "virtualbox"])
def test_debian_boots_and_answers_by_its_agent(tmp_path: Path, dialect: str) -> None:
    with live_host(tmp_path) as host:
        with_debian(host)
        digest = host.call("GET", f"/v1/images/{NAME}")["digest"].removeprefix("sha256:")
        content = host.state.images / digest / "content"
        path = ova(tmp_path / "debian.ova", "brought", dialect, content, "qcow2")
        body = request(host, path, start=True)
        plan = host.call("POST", "/v1/imports/plan", body)
        assert "virtio-drivers-present" in {each["id"] for each in plan["findings"]}
        host.do("POST", "/v1/imports", body)
        assert host.wait_agent("brought", 400).spec.boot.secure_boot is (dialect == "vsphere")  # type: ignore[union-attr]
        assert "Debian" in host.run_in("brought", "cat /etc/os-release")
        host.call("POST", "/v1/vms/brought/kill")
        check_invariants(host)
