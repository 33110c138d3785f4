"""VMs taken away by a real daemon: read by qemu-img, opened by their owner, and a crash in the middle."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invariants import check_invariants
from live_host import LiveHost, live_host

from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState
from holdfast.trust.firmware_state import opened
from holdfast.trust.protection import PassphraseLock

PASSPHRASE = "five plain words for this"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHost]:
    """A daemon with a VM of two disks, one with data, that need not boot."""
    with live_host(tmp_path_factory.mktemp("host")) as running:
        disks = [{"size": "24MiB"}, {"size": "1MiB", "bus": "nvme"}]
        running.do("POST", "/v1/vms", {"name": "web", "memory": "256MiB", "disks": disks, "nics": []})
        volume = running.state.vm("web") / "disk0.qcow2"
        write = ["-c", "write -P 5 1M 3M", "-c", "write -P 6 24572k 4k"]
        subprocess.run(["qemu-io", "-f", "qcow2", *write, volume], check=True, capture_output=True)
        yield running


def cli(host: LiveHost, *arguments: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "HOLDFAST_SOCKET": str(host.state.socket)}
    return subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments], env=env, capture_output=True, text=True, check=False
    )


def same(host: LiveHost, disk: str, form: str, made: Path) -> None:
    volume = host.state.vm("web") / f"{disk}.qcow2"
    subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", form, volume, made], check=True)


def left(host: LiveHost) -> list[str]:
    return [path.name for path in host.state.scratch.iterdir() if path.name != "uploads"]


def test_an_archive_with_firmware_state_is_whole_and_opens(host: LiveHost, tmp_path: Path) -> None:
    target, secret = tmp_path / "web.ova", tmp_path / "secret"
    secret.write_text(PASSPHRASE + "\n")
    state = ("--with-firmware-state", "--passphrase-file", str(secret))
    done = cli(host, "vm", "export", "web", "--to", str(target), "--format", "json", *state)
    assert done.returncode == 0, done.stderr
    with tarfile.open(target) as archive:
        names = archive.getnames()
        files = {name: archive.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert names == ["web.ovf", "web.mf", "web-disk0.vmdk", "web-disk1.vmdk", "web.hfstate"]
    assert list(json.loads(done.stdout)["files"]) == names
    lines = files.pop("web.mf").decode().splitlines()
    listed = dict(line.removeprefix("SHA256(").split(")= ") for line in lines)
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for disk in ("disk0", "disk1"):
        (tmp_path / disk).write_bytes(files[f"web-{disk}.vmdk"])
        same(host, disk, "vmdk", tmp_path / disk)
    taken = opened(files["web.hfstate"], PassphraseLock(PASSPHRASE))
    assert taken.vm_id == host.vm("web").id and taken.tpm is not None
    assert left(host) == []
    check_invariants(host)


@pytest.mark.parametrize("form", ["qcow2", "vhdx", "raw"])
def test_a_folder_holds_disks_of_other_formats(host: LiveHost, tmp_path: Path, form: str) -> None:
    target = tmp_path / "out"
    done = cli(host, "vm", "export", "web", "--to", str(target), "--format", form)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in target.iterdir()) == [
        f"web-disk0.{form}",
        f"web-disk1.{form}",
        "web.mf",
        "web.ovf",
    ]
    same(host, "disk0", form, target / f"web-disk0.{form}")
    assert left(host) == []


def test_after_a_kill_the_export_goes_on_with_the_disks_that_are_whole(host: LiveHost) -> None:
    begun = Operation.model_validate(host.call("POST", "/v1/vms/web/export", {}))
    folder = host.state.scratch / f"operation-{begun.id}"
    while not (folder / "web-disk1.vmdk").exists():
        assert not Operation.model_validate(host.call("GET", f"/v1/operations/{begun.id}")).state.ended
    host.kill()
    first = (folder / "web-disk0.vmdk").stat().st_ino
    host.start()
    ended = host.end_of(begun)
    assert ended.state is OperationState.SUCCEEDED, ended
    assert (folder / "web-disk0.vmdk").stat().st_ino == first
    same(host, "disk0", "vmdk", folder / "web-disk0.vmdk")
    host.call("DELETE", f"/v1/exports/{begun.id}")
    assert left(host) == []


def test_a_cancelled_export_leaves_nothing(host: LiveHost) -> None:
    begun = Operation.model_validate(host.call("POST", "/v1/vms/web/export", {"format": "raw"}))
    host.call("POST", f"/v1/operations/{begun.id}/cancel")
    assert host.end_of(begun).state in (OperationState.CANCELLED, OperationState.SUCCEEDED)
    host.call("DELETE", f"/v1/exports/{begun.id}")
    assert left(host) == []


def refused(host: LiveHost, body: dict[str, Any]) -> str:
    with pytest.raises(RemoteError) as caught:
        host.call("POST", "/v1/vms/web/export", body)
    return caught.value.wire_id


def test_what_cannot_be_exported_is_refused(host: LiveHost) -> None:
    assert refused(host, {"checkpoint": "none"}) == "checkpoint-not-found"
    assert refused(host, {"format": "vdi"}) == "bad-request"
    assert refused(host, {"firmware_state": {"size": 1, "sha256": "../x"}}) == "bad-request"


def test_a_checkpoint_is_exported_as_the_vm_was(host: LiveHost, tmp_path: Path) -> None:
    host.do("POST", "/v1/vms/web/checkpoints", {"name": "before"})
    top = sorted(host.state.vm("web").glob("disk0*.qcow2"), key=lambda path: path.stat().st_mtime)[-1]
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 1M", top], check=True, capture_output=True)
    target = tmp_path / "out"
    done = cli(host, "vm", "export", "web", "--to", str(target), "--checkpoint", "before")
    assert done.returncode == 0, done.stderr
    same(host, "disk0", "vmdk", target / "web-disk0.vmdk")


@pytest.mark.skipif(not shutil.which("virt-v2v"), reason="no virt-v2v")
def test_virt_v2v_reads_the_archive_and_checks_its_manifest(host: LiveHost, tmp_path: Path) -> None:
    target = tmp_path / "web.ova"
    assert cli(host, "vm", "export", "web", "--to", str(target)).returncode == 0
    argv = ["virt-v2v", "-i", "ova", target, "--print-source"]
    env = {**os.environ, "LIBGUESTFS_BACKEND": "direct"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    said = dict(re.findall(r"^ *([A-Za-z ]+): (.*)$", done.stdout, re.MULTILINE))
    assert said["source name"] == "web" and said["memory"] == f"{256 << 20} (bytes)"
    assert (said["firmware"], said["nr vCPUs"]) == ("uefi", str(host.vm("web").spec.cpus))
    assert done.stdout.count("[scsi]") == 1 and re.search(r"disks:\n\t0 .*\n\t1 ", done.stdout)
    data = bytearray(target.read_bytes())
    data[-4096 - 512] ^= 1  # in the last disk
    target.write_bytes(data)
    assert subprocess.run(argv, env=env, capture_output=True, check=False).returncode != 0
