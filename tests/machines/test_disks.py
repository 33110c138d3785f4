"""Disks added, used, grown, limited and removed, while a guest runs and while it does not."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_verbs import add, disks, refused, remove
from invariants import check_invariants
from live_host import LiveHost, live_host
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images

from holdfast.spec.units import MIB

NAME = "disky"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, small: SmallGuest) -> Iterator[LiveHost]:
    """A daemon with one VM that runs."""
    with live_host(tmp_path_factory.mktemp("disks")) as host:
        with_small_images(host, small)
        host.do("POST", "/v1/vms", small_vm(NAME, small.append, start=True))
        host.wait_agent(NAME)
        yield host
        check_invariants(host)


def blocks(host: LiveHost, disk: str, name: str = NAME) -> int:
    return (host.state.vm(name) / f"{disk}.qcow2").stat().st_blocks * 512


def test_on_every_bus_while_the_guest_runs(shared: LiveHost) -> None:
    host = shared
    names = {}
    for bus in ("virtio", "scsi", "nvme"):
        result = add(host, NAME, size="32MiB", bus=bus)
        assert result["guest_sees"] is True, result
        names[result["disk"]["id"]] = result["guest_name"]
    assert list(names) == ["disk1", "disk2", "disk3"]
    assert [name.rstrip("0123456789") for name in names.values()] == [
        "/dev/vdb",
        "/dev/sda",
        "/dev/nvme0n"[:-1] + "n",
    ]
    assert [disk["plugged"] for disk in disks(host, NAME).values()] == [True] * 4
    assert host.vm(NAME).pending == {}
    assert any("NVMe" in notice for notice in host.vm(NAME).notices)
    refused(host, "memory-not-movable", "POST", f"{NAME}/save")

    for name in names.values():
        host.run_in(NAME, f"dd if=/dev/urandom of={name} bs=1M count=8 conv=fsync 2>/dev/null")
    assert blocks(host, "disk1") > 8 * MIB

    # The guest gives blocks back, and so does the file.
    host.run_in(NAME, f"blkdiscard {names['disk1']}")
    assert disks(host, NAME)["disk1"]["stored"] < 2 * MIB

    for disk, name in names.items():
        if disk == "disk3":
            refused(host, "disk-not-growable-now", "POST", f"{NAME}/disks/{disk}/grow", {"size": "48MiB"})
            continue
        grown = host.do("POST", f"/v1/vms/{NAME}/disks/{disk}/grow", {"size": "48MiB"}).result
        assert grown and grown["guest_sees"] is True, grown
        assert host.run_in(NAME, f"cat /sys/class/block/{name[5:]}/size").strip() == str(48 * MIB // 512)

    free = read_seconds(host, names["disk1"])
    limits = host.call("PATCH", f"/v1/vms/{NAME}/disks/disk1/limits", {"bandwidth": "4MiB"})["limits"]
    assert limits["bandwidth"] == 4 * MIB
    assert read_seconds(host, names["disk1"]) > max(1.2, 2 * free)
    host.call("PATCH", f"/v1/vms/{NAME}/disks/disk1/limits", {"bandwidth": 0})
    assert read_seconds(host, names["disk1"]) < 1.2

    kept = remove(host, NAME, "disk1", keep=True)
    assert (Path(kept["kept"]) / "disk1.qcow2").is_file()
    for disk in ("disk2", "disk3"):
        assert remove(host, NAME, disk) == {
            "vm": NAME, "disk_id": disk, "guest_sees": False, "kept": None, "waits": False,
        }  # fmt: skip
        assert not (host.state.vm(NAME) / f"{disk}.qcow2").exists()
    seen = host.run_in(NAME, "ls /sys/class/block").split()
    assert not [name for name in seen if name[:3] in ("vdb", "sda", "nvm")], seen
    assert list(disks(host, NAME)) == ["disk0"]


def read_seconds(host: LiveHost, device: str) -> float:
    """That 8 MiB take to read, past the guest's cache; the first burst is not counted."""
    script = f"""
        dd if={device} of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null
        cut -d' ' -f1 /proc/uptime; dd if={device} of=/dev/null bs=1M count=8 iflag=direct 2>/dev/null
        cut -d' ' -f1 /proc/uptime"""
    before, after = map(float, host.run_in(NAME, script).split())
    return after - before


def test_what_cannot_work_is_refused(shared: LiveHost, tmp_path: Path) -> None:
    host, path = shared, f"{NAME}/disks"
    refused(host, "boot-disk", "DELETE", f"{path}/disk0")
    refused(host, "boot-disk", "DELETE", f"{path}/disk0", force=True)
    refused(host, "disk-not-found", "DELETE", f"{path}/disk7")
    refused(host, "no-such-address", "POST", f"{path}/..%2fdisk0/grow", {"size": "1GiB"})
    refused(host, "disk-shrunk", "POST", f"{path}/disk0/grow", {"size": "8MiB"})
    refused(host, "disk-larger-than-storage", "POST", f"{path}/disk0/grow", {"size": "60TiB"})
    refused(host, "disk-larger-than-storage", "POST", path, {"size": "60TiB"})
    refused(host, "bad-limits", "PATCH", f"{path}/disk0/limits", {"iops": 10, "iops_read": 5})
    refused(host, "not-a-block-device", "POST", path, {"device": "/dev/none"})
    refused(host, "not-a-block-device", "POST", path, {"device": str(tmp_path)})
    for body in ({"size": 0}, {"size": "1000TiB"}, {"bus": "virtio"}, {"size": "1GiB", "device": "/dev/x"}):
        refused(host, "bad-request", "POST", path, body)
    root = subprocess.run(["findmnt", "-no", "SOURCE", "/"], capture_output=True, text=True).stdout.strip()
    if re.fullmatch(r"/dev/\w+", root) and os.getuid() == 0:
        refused(host, "block-device-in-use", "POST", path, {"device": root})


def test_a_guest_that_does_not_answer_keeps_its_disk(shared: LiveHost) -> None:
    host, path = shared, f"{NAME}/disks/disk1"
    add(host, NAME, size="16MiB")
    host.call("POST", f"/v1/vms/{NAME}/pause")
    refused(host, "unplug-ignored", "DELETE", path)
    assert disks(host, NAME)["disk1"]["after_next_start"]
    assert remove(host, NAME, "disk1", force=True)["waits"]
    shown = disks(host, NAME)["disk1"]
    assert (shown["plugged"], shown["after_next_start"]) == (True, False)
    assert (host.state.vm(NAME) / "disk1.qcow2").exists()
    host.call("POST", f"/v1/vms/{NAME}/resume")
    host.run_in(NAME, "while [ -e /sys/class/block/vdb ]; do sleep 0.1; done")
    with host.client():
        wait_gone(host, "disk1")
    assert not (host.state.vm(NAME) / "disk1.qcow2").exists()


def wait_gone(host: LiveHost, disk: str) -> None:
    for _ in range(200):
        if disk not in disks(host, NAME):
            return
        host.run_in(NAME, "sleep 0.1")
    pytest.fail(f"{disk} is still there")
