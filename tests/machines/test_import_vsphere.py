"""VMs of a (fake) vCenter brought over by a live daemon: off, and warm while they run and write."""

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_vsphere import PASSWORD, USER, FakeVsphere, Trouble, serving
from invariants import check_invariants
from live_host import LiveHost, live_host
from vsphere_vms import FakeDisk, FakeVm

from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState

MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHost]:
    with live_host(tmp_path_factory.mktemp("vsphere")) as running:
        yield running


@pytest.fixture(scope="module")
def pools(shared: LiveHost) -> dict[str, Path]:
    """Pools of directories, one of them of raw volumes."""
    made = {}
    for name, form in (("thin", "qcow2"), ("plain", "raw")):
        made[name] = shared.state.root.parent / name
        made[name].mkdir()
        spec = {"kind": "directory", "path": str(made[name]), "format": form}
        shared.call("POST", "/v1/pools", {"name": name, "spec": spec})
    return made


def filled(key: int, size: int, seed: int) -> FakeDisk:
    """With data that does not pack at its beginning, some in the middle, and zeros."""
    disk = FakeDisk(key, bytearray(size))
    disk.write(0, random.Random(seed).randbytes(size // 4))
    disk.write(size // 2 + 4096, b"text " * 20_000)
    return disk


@contextmanager
def server(folder: Path, vm: FakeVm, **trouble: Any) -> Iterator[FakeVsphere]:
    with serving(FakeVsphere([vm], Trouble(**trouble)), folder) as fake:
        yield fake


def request(fake: FakeVsphere, name: str, **more: Any) -> dict[str, Any]:
    return {"source": access(fake, name), "name": name, "tpm": False, **more}


def access(fake: FakeVsphere, name: str, **more: Any) -> dict[str, Any]:
    whole = {"address": f"{fake.address}/{name}", "user": USER, "password": PASSWORD}
    return {**whole, "thumbprint": fake.thumbprint, **more}


def begun(host: LiveHost, body: dict[str, Any]) -> Operation:
    return Operation.model_validate(host.call("POST", "/v1/imports/vsphere", body))


def require_same(host: LiveHost, vm: FakeVm, folder: Path, **pools: Path) -> None:
    """`pools`: those of disks that do not lie in the VM's own folder."""
    for index, disk in enumerate(vm.disks):
        pool = pools.get(f"disk{index}")
        parent = host.state.vm(vm.name) if pool is None else pool / vm.name
        (volume,) = parent.glob(f"disk{index}.*")
        form, raw = volume.suffix[1:], folder / "expected.raw"
        raw.write_bytes(disk.content)
        argv = ["qemu-img", "compare", "-f", "raw", "-F", form, str(raw), str(volume)]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert form == "raw" or not subprocess.run(["qemu-img", "check", "-q", "-f", form, volume]).returncode


def forget(host: LiveHost, name: str) -> None:
    check_invariants(host)
    assert not list(host.state.scratch.glob("vsphere-*")), "the password is kept"
    host.do("DELETE", f"/v1/vms/{name}")


def test_the_inventory_is_listed_and_a_vm_is_planned(shared: LiveHost, tmp_path: Path) -> None:
    vm = FakeVm("vm-7", "planned", [filled(2000, 4 * MIB, 1)], tracked=False)
    with server(tmp_path, vm) as fake:
        listed = shared.call("POST", "/v1/imports/vsphere/list", access(fake, ""))
        assert [(each["name"], each["datacenter"], each["running"]) for each in listed] == [
            ("planned", "Lab / One", True)
        ]
        plan = shared.call("POST", "/v1/imports/vsphere/plan", request(fake, "planned"))
        assert (plan["kind"], plan["cpus"], plan["memory"]) == ("vsphere", 2, 512 * MIB)
        assert plan["nics"][0]["mac"] == "00:50:56:be:ef:01" and plan["secure_boot"]
        assert {each["id"] for each in plan["findings"]} >= {"vsphere-vm-on", "change-tracking-off"}
        with pytest.raises(RemoteError) as refused:
            begun(shared, request(fake, "planned", warm=True))
        assert refused.value.wire_id == "not-importable" and "change-tracking-off" in refused.value.value
    assert check_invariants(shared) == []


def test_a_stranger_and_a_wrong_password_are_refused(shared: LiveHost, tmp_path: Path) -> None:
    with server(tmp_path, FakeVm("vm-7", "web", [])) as fake:
        unknown = access(fake, "web", thumbprint=None)
        with pytest.raises(RemoteError) as refused:
            shared.call("POST", "/v1/imports/vsphere/list", unknown)
        assert refused.value.wire_id == "vsphere-certificate-unknown"
        assert refused.value.value == fake.thumbprint and not fake.asked
        with pytest.raises(RemoteError) as refused:
            shared.call("POST", "/v1/imports/vsphere/list", access(fake, "web", thumbprint="AB" * 32))
        assert refused.value.wire_id == "vsphere-certificate-changed" and not fake.asked
        with pytest.raises(RemoteError) as refused:
            shared.call("POST", "/v1/imports/vsphere/list", access(fake, "web", password="wrong-one"))
        assert refused.value.wire_id == "vsphere-login-refused"
        assert shared.call("POST", "/v1/imports/vsphere/list", unknown), "the thumbprint is kept"
        with pytest.raises(RemoteError) as refused:
            shared.call("POST", "/v1/imports/vsphere/plan", request(fake, "nobody"))
        assert refused.value.wire_id == "vsphere-vm-not-found"
    assert "wrong-one" not in shared.log.read_text() and PASSWORD not in shared.log.read_text()


def test_a_vm_that_is_off_comes_over_though_the_line_drops_and_the_lease_ends(
    shared: LiveHost, pools: dict[str, Path], tmp_path: Path
) -> None:
    vm = FakeVm("vm-8", "cold", [filled(2000, 8 * MIB, 2), filled(2001, 4 * MIB + 512, 3)], running=False)
    with server(tmp_path, vm, drops=1, lease_ends=1) as fake:
        body = request(fake, "cold", pools={"disk1": "plain"})
        plan = shared.call("POST", "/v1/imports/vsphere/plan", body)
        assert [each["pool"] for each in plan["disks"]] == [None, "plain"]
        assert {each["pool"] for each in plan["space"]} == {"local", "plain"}
        done = shared.end_of(begun(shared, body))
        assert done.state is OperationState.SUCCEEDED, done.error
        require_same(shared, vm, tmp_path, disk1=pools["plain"])
        assert fake.asked.count("ExportVm") == 2 and fake.trouble == Trouble()
        assert not [each for each in fake.asked if each.startswith("/folder/")]
        with pytest.raises(RemoteError) as refused:
            begun(shared, {**request(fake, "cold", pools={"*": "nowhere"}), "name": "again"})
        assert "pool-not-found" in refused.value.value
    forget(shared, "cold")
    assert not (pools["plain"] / "cold").exists()


def test_a_warm_import_brings_what_changed_and_cuts_over(shared: LiveHost, tmp_path: Path) -> None:
    vm = FakeVm("vm-9", "warm", [filled(2000, 16 * MIB, 4), filled(2001, 4 * MIB, 5)])
    rounds: list[int] = []

    def write(vm: FakeVm) -> None:
        """Between rounds the guest overwrites, clears, and writes where nothing was."""
        seed = len(rounds) + 10
        rounds.append(seed)
        if vm.running:
            vm.disks[0].write(MIB + 777 * seed, random.Random(seed).randbytes(300_000))
            vm.disks[0].write(2 * MIB, bytes(128 * 1024))
            vm.disks[1].write(3 * MIB + seed, b"new" * seed)

    with server(tmp_path, vm, drops=2) as fake:
        fake.on_round = write
        done = shared.end_of(begun(shared, request(fake, "warm", warm=True)))
        assert done.state is OperationState.SUCCEEDED, done.error
        assert done.result == {"vm": "warm", "rounds": 3}
        require_same(shared, vm, tmp_path)
        assert not vm.running and not vm.snapshots and len(rounds) == 3
        # Later rounds read only around what changed.
        read = [each for each in fake.asked if each.startswith("/folder/warm/warm-flat.vmdk bytes=")]
        spans = [[int(part) for part in each.rpartition("=")[2].split("-")] for each in read]
        assert sum(end - start + 1 for start, end in spans) < 9 * MIB, spans
    forget(shared, "warm")


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [{"forget_changes": True}, {"no_ranges": True}])
def test_a_warm_import_reads_all_where_it_must(
    shared: LiveHost, tmp_path: Path, trouble: dict[str, bool]
) -> None:
    """Change ids that are no longer known, and datastores that only export."""
    vm = FakeVm("vm-9", "whole", [filled(2000, 4 * MIB, 6)], tools=True, below="no_ranges" in trouble)
    with server(tmp_path, vm, **trouble) as fake:
        fake.on_round = lambda vm: vm.running and vm.disks[0].write(0, bytes(200_000))
        done = shared.end_of(begun(shared, request(fake, "whole", warm=True)))
        assert done.state is OperationState.SUCCEEDED, done.error
        require_same(shared, vm, tmp_path)
        assert ("ExportSnapshot" in fake.asked) is ("no_ranges" in trouble)
        if vm.below:
            plan = shared.call("POST", "/v1/imports/vsphere/plan", request(fake, "whole"))
            assert "snapshots-not-kept" in {each["id"] for each in plan["findings"]}
    forget(shared, "whole")


def test_a_warm_import_goes_on_after_kill_9_and_a_cancelled_one_leaves_nothing(
    shared: LiveHost, pools: dict[str, Path], tmp_path: Path
) -> None:
    vm = FakeVm("vm-9", "killed", [filled(2000, 32 * MIB, 7)])
    vm.disks[0].write(0, random.Random(8).randbytes(24 * MIB))
    with server(tmp_path, vm, throttle=0.3) as fake:
        soon = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
        operation = begun(shared, request(fake, "killed", warm=True, cut_over_at=soon, pools={"*": "thin"}))
        wait_for(lambda: sum(each.startswith("/folder/") for each in fake.asked) > 4)
        shared.kill()
        shared.start()
        assert shared.end_of(operation).state is OperationState.SUCCEEDED
        require_same(shared, vm, tmp_path, disk0=pools["thin"])
        assert not vm.snapshots and not vm.running
        forget(shared, "killed")
        vm.running = True
        fake.asked.clear()
        operation = begun(shared, request(fake, "killed", warm=True, pools={"*": "thin"}))
        wait_for(lambda: any(each.startswith("/folder/") for each in fake.asked))
        shared.call("POST", f"/v1/operations/{operation.id}/cancel")
        assert shared.end_of(operation).state is OperationState.CANCELLED
        assert vm.running and not vm.snapshots
    assert check_invariants(shared) == []
    assert not (pools["thin"] / "killed").exists()
    assert not list(shared.state.scratch.glob("vsphere-*"))


@pytest.mark.slow
def test_a_vm_that_is_started_there_during_the_cut_over_is_not_brought(
    shared: LiveHost, tmp_path: Path
) -> None:
    vm = FakeVm("vm-9", "twice", [filled(2000, 4 * MIB, 9)])
    was_off: list[bool] = []

    def start_again(vm: FakeVm) -> None:
        """Once it was shut down for the last round."""
        if not vm.running:
            was_off.append(True)
            vm.running = True

    with server(tmp_path, vm) as fake:
        fake.on_round = start_again
        done = shared.end_of(begun(shared, request(fake, "twice", warm=True)))
    assert done.state is OperationState.FAILED and done.error is not None
    assert done.error["id"] == "vsphere-vm-runs-again" and was_off
    assert vm.running and not vm.snapshots
    assert check_invariants(shared) == []
    assert not list(shared.state.scratch.glob("vsphere-*"))


def wait_for(happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
