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
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from invariants import check_invariants
from live_host import LiveHost, live_host

from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.vm import UefiBoot
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


def taken_along(host: LiveHost, folder: Path, *lock: str) -> Path:
    target = folder / "web.ova"
    done = cli(host, "vm", "export", "web", "--to", str(target), "--with-firmware-state", *lock)
    assert done.returncode == 0, done.stderr
    return target


def firmware(host: LiveHost, name: str) -> list[bytes]:
    folder = host.state.vm(name) / "firmware"
    return [(folder / each).read_bytes() for each in ("variables.fd", "tpm/tpm2-00.permall")]


def failed(host: LiveHost, *arguments: str) -> Any:
    """Id, value and more of what a command was refused with."""
    done = cli(host, "vm", "import", *arguments, "--format", "json")
    assert done.returncode != 0, done.stdout
    return json.loads(done.stderr.strip().splitlines()[-1])


def test_firmware_state_comes_back_with_its_disks(host: LiveHost, tmp_path: Path) -> None:
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    secret.write_text(PASSPHRASE + "\n")
    wrong.write_text("not the passphrase\n")
    path = str(taken_along(host, tmp_path, "--passphrase-file", str(secret)))
    opened_by = ("--passphrase-file", str(secret))

    plan = json.loads(cli(host, "vm", "import", path, "--plan", "--name", "back", "--format", "json").stdout)
    assert plan["importable"] and plan["firmware_state"]["taken"] is False
    assert "firmware-state-not-taken" in {each["id"] for each in plan["findings"]}
    assert failed(host, path, "--name", "back", "--passphrase-file", str(wrong))["id"] == "wrong-passphrase"
    mine = failed(host, path, "--name", "back", *opened_by)
    assert mine["id"] == "not-importable" and mine["value"] == ["firmware-state-of-another-vm"]
    unlike = failed(host, path, "--name", "back", "--no-tpm", "--same-tpm", *opened_by)
    assert unlike["value"] == ["firmware-state-unlike"]
    assert left(host) == [] and [each["name"] for each in check_invariants(host)] == ["web"]

    done = cli(host, "vm", "import", path, "--name", "back", "--same-tpm", *opened_by)
    assert done.returncode == 0, done.stderr
    assert firmware(host, "back") == firmware(host, "web")
    boot = host.vm("back").spec.boot
    assert isinstance(boot, UefiBoot) and boot.tpm_identity == host.vm("web").id
    host.do("POST", "/v1/vms/back/start")
    with pytest.raises(RemoteError) as caught:
        host.call("POST", "/v1/vms/web/start")
    assert caught.value.wire_id == "tpm-identity-in-use"
    host.call("POST", "/v1/vms/back/kill")
    stored = (host.state.root / "catalog.sqlite").read_bytes() + host.log.read_bytes()
    assert PASSPHRASE.encode() not in stored
    host.do("DELETE", "/v1/vms/back")
    assert left(host) == [] and [each["name"] for each in check_invariants(host)] == ["web"]


def test_firmware_state_for_a_recipient_opens_with_his_key_and_goes_with_an_import_that_fails(
    host: LiveHost, tmp_path: Path
) -> None:
    pair = ec.generate_private_key(ec.SECP256R1())
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key.write_bytes(pair.private_bytes(*form))
    public.write_bytes(pair.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    path = taken_along(host, tmp_path, "--recipient", str(public))
    more = ("--name", "back", "--same-tpm", "--private-key", str(key))
    done = cli(host, "vm", "import", str(path), *more)
    assert done.returncode == 0, done.stderr
    assert firmware(host, "back") == firmware(host, "web")
    host.do("DELETE", "/v1/vms/back")
    # A manifest that lies of a disk: the firmware state was put already, and goes again.
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        sums = archive.extractfile("web.mf").read()  # type: ignore[union-attr]
        place = archive.getmember("web.mf").offset_data
    line = next(each for each in sums.splitlines() if each.startswith(b"SHA256(web-disk0.vmdk)= "))
    at = place + sums.index(line) + len(line) - 1
    path.write_bytes(data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :])
    assert failed(host, str(path), *more)["id"] == "manifest-mismatch"
    assert left(host) == [] and [each["name"] for each in check_invariants(host)] == ["web"]


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
