"""Block devices of the host given to VMs: used from inside, restarted with, taken out; and refused."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from disk_verbs import add, disks, refused, remove
from invariants import check_invariants
from live_host import LiveHost, live_host
from loop_files import LoopDevice
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images

from holdfast.host.block_devices import BlockDeviceInUse, open_exclusively
from holdfast.spec.units import MIB
from holdfast.spec.vm import VmState

NAME, OTHER = "carrier", "other"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes loop devices")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, small: SmallGuest) -> Iterator[LiveHost]:
    """A daemon with one VM that runs and one that does not."""
    with live_host(tmp_path_factory.mktemp("devices")) as host:
        with_small_images(host, small)
        host.do("POST", "/v1/vms", small_vm(OTHER, small.append))
        host.do("POST", "/v1/vms", small_vm(NAME, small.append, start=True))
        host.wait_agent(NAME)
        yield host
        check_invariants(host)


@contextmanager
def device(folder: Path, name: str, size: int = 32 * MIB, *options: str) -> Iterator[LoopDevice]:
    made = LoopDevice.make(folder / name, size, *options)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def named_by_id(target: Path) -> Iterator[Path]:
    """The name that udev would give it."""
    folder = Path("/dev/disk/by-id")
    made = [each for each in (folder, folder.parent) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / f"holdfast-test-{os.getpid()}"
    link.symlink_to(target)
    try:
        yield link
    finally:
        link.unlink()
        for each in made:
            with suppress(OSError):
                each.rmdir()


def digest(device: LoopDevice, size: int) -> str:
    with device.file.open("rb") as file:
        return md5(file.read(size), usedforsecurity=False).hexdigest()


def test_a_device_is_used_from_inside_and_comes_back_with_the_vm(shared: LiveHost, tmp_path: Path) -> None:
    host = shared
    with device(tmp_path, "whole") as given, named_by_id(given.path) as stable:
        link = tmp_path / "link"
        link.symlink_to(given.path)
        added = add(host, NAME, device=str(link))
        assert (added["guest_sees"], added["guest_name"]) == (True, "/dev/vdb"), added
        shown = disks(host, NAME)["disk1"]
        assert (shown["device"], shown["size"], shown["layers"]) == (str(stable), 32 * MIB, [])
        assert any("host's device" in notice for notice in shown["notices"])
        wrote = host.run_in(
            NAME, "dd if=/dev/urandom bs=1M count=8 2>/dev/null | tee /dev/vdb | md5sum; sync"
        )
        assert wrote.split()[0] == digest(given, 8 * MIB)
        with pytest.raises(BlockDeviceInUse):
            open_exclusively(str(given.path))
        _not_for_devices(host)

        host.kill()
        host.start()
        host.wait_agent(NAME)
        host.call("POST", f"/v1/vms/{NAME}/kill")
        host.wait_state(NAME, VmState.OFF)
        os.close(open_exclusively(str(given.path)))
        host.do("POST", f"/v1/vms/{NAME}/start")
        host.wait_agent(NAME)
        read = host.run_in(NAME, "dd if=/dev/vdb bs=1M count=8 2>/dev/null | md5sum")
        assert read.split()[0] == wrote.split()[0]

        assert remove(host, NAME, "disk1")["guest_sees"] is False
        assert list(disks(host, NAME)) == ["disk0"]
        assert digest(given, 8 * MIB) == wrote.split()[0], "what is on it is not ours to delete"
        os.close(open_exclusively(str(given.path)))


def _not_for_devices(host: LiveHost) -> None:
    path = f"{NAME}/disks/disk1"
    refused(host, "device-has-its-size", "POST", f"{path}/grow", {"size": "64MiB"})
    refused(host, "disk-on-device", "POST", f"{path}/move", {"to": "local"})
    refused(host, "disk-on-device", "POST", f"{NAME}/checkpoints", {"name": "one"})


def test_large_sectors_are_seen_as_they_are(shared: LiveHost, tmp_path: Path) -> None:
    """A partition table counts in sectors of its device."""
    host = shared
    with device(tmp_path, "large", 32 * MIB, "--sector-size", "4096") as given:
        table = b"label: gpt\nstart=256, size=1024\n"
        subprocess.run(["sfdisk", "-q", "--no-reread", given.path], input=table, check=True)
        for bus, name in (("virtio", "vdb"), ("scsi", "sda"), ("nvme", "nvme0n1")):
            name = Path(add(host, NAME, device=str(given.path), bus=bus)["guest_name"]).name
            seen = host.run_in(
                NAME, f"cd /sys/class/block/{name}; cat queue/logical_block_size {name}*1/size"
            )
            assert seen.split() == ["4096", str(1024 * 8)], (bus, seen)
            remove(host, NAME, "disk1")


def test_what_cannot_be_had_is_refused(shared: LiveHost, tmp_path: Path) -> None:
    host = shared
    before = (disks(host, NAME), host.vm(NAME).spec)
    (tmp_path / "file").write_bytes(bytes(MIB))
    for path in ("/dev/none", "/dev/null", str(tmp_path), str(tmp_path / "file"), "loop0", "/dev/loop0\0x"):
        _refused(host, "not-a-block-device", path)
    with device(tmp_path, "small", MIB // 2) as small, device(tmp_path, "fixed", MIB, "-r") as fixed:
        _refused(host, "block-device-too-small", small.path)
        _refused(host, "not-a-block-device", fixed.path)
    root = subprocess.run(["findmnt", "-no", "SOURCE", "/"], capture_output=True, text=True).stdout.strip()
    if Path(root).is_block_device():
        _refused(host, "block-device-in-use", root)
    assert (disks(host, NAME), host.vm(NAME).spec) == before


def test_what_somebody_uses_is_refused(shared: LiveHost, tmp_path: Path) -> None:
    host = shared
    before = (disks(host, NAME), host.vm(NAME).spec)
    with device(tmp_path, "used") as used:
        part, free = used.part(1, MIB, 16 * MIB), used.part(2, 20 * MIB, 8 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", part], check=True)
        mount = tmp_path / "mount"
        mount.mkdir()
        subprocess.run(["mount", part, mount], check=True)
        try:
            for path in (part, used.path):
                said = _refused(host, "block-device-in-use", path)
                assert f"mounted on {mount}" in said
        finally:
            subprocess.run(["umount", mount], check=True)
        subprocess.run(["mkswap", part], check=True, capture_output=True)
        subprocess.run(["swapon", part], check=True)
        try:
            for path in (part, used.path):
                assert "swap" in _refused(host, "block-device-in-use", path)
        finally:
            subprocess.run(["swapoff", part], check=True)
        held = open_exclusively(str(used.path))
        for path in (used.path, free):
            _refused(host, "block-device-in-use", path)
        os.close(held)
        assert (disks(host, NAME), host.vm(NAME).spec) == before
        add(host, NAME, device=str(free))
        assert remove(host, NAME, "disk1")["guest_sees"] is False


def test_a_device_belongs_to_one_vm_under_all_its_names(shared: LiveHost, tmp_path: Path) -> None:
    host = shared
    with device(tmp_path, "lone") as lone, named_by_id(lone.path) as stable:
        part = lone.part(1, MIB, 16 * MIB)
        link = tmp_path / "link"
        link.symlink_to(stable)
        add(host, OTHER, device=str(lone.path))
        before = (disks(host, NAME), disks(host, OTHER))
        for name in (NAME, OTHER):
            for path in (lone.path, stable, link, part):
                assert OTHER in _refused(host, "block-device-in-use", path, name)
        assert (disks(host, NAME), disks(host, OTHER)) == before
        remove(host, OTHER, "disk1")

        add(host, NAME, device=str(part))
        for path in (part, lone.path):
            _refused(host, "block-device-in-use", path, OTHER)
        remove(host, NAME, "disk1")
        assert list(disks(host, OTHER)) == ["disk0"]


def test_a_vm_does_not_start_while_its_device_is_in_use(shared: LiveHost, tmp_path: Path) -> None:
    host = shared
    with device(tmp_path, "later") as later:
        add(host, OTHER, device=str(later.path))
        held = open_exclusively(str(later.path))
        refused(host, "block-device-in-use", "POST", f"{OTHER}/start")
        os.close(held)
        later.close()
        refused(host, "not-a-block-device", "POST", f"{OTHER}/start")
        assert host.vm(OTHER).state is VmState.OFF
        remove(host, OTHER, "disk1")


def _refused(host: LiveHost, error: str, path: str | Path, name: str = NAME) -> str:
    """Returns what was said."""
    body: dict[str, Any] = {"device": str(path)}
    return refused(host, error, "POST", f"{name}/disks", body)
