"""What is refused, and how: a stable id, the value in the words, a cure, an exit code, nothing left over."""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invariants import check_invariants
from live_host import LiveHost, live_host
from small_guest import SmallGuest
from small_vms import small_vm, with_small_images

from holdfast.cli.exit_codes import EXIT_CODES
from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState
from holdfast.spec.vm import VmState

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounts file systems of its own")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, small: SmallGuest) -> Iterator[LiveHost]:
    with live_host(tmp_path_factory.mktemp("refusals")) as running:
        yield with_small_images(running, small)


@pytest.fixture(autouse=True)
def nothing_left_over(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "shared" in request.fixturenames:
        host = request.getfixturevalue("shared")
        left = check_invariants(host)
        for each in left:
            host.do("DELETE", f"/v1/vms/{each['id']}", force="true")
        assert left == []


def plain_vm(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "memory": "64MiB", "nics": [], **more}


def well_said(error: dict[str, Any], id_: str, kind: str, *words: str) -> None:
    """An error as a person and a program need it."""
    assert (error["id"], error["kind"]) == (id_, kind), error
    assert all(word in error["message"] for word in words), error
    assert error["cure"], error
    assert "Traceback" not in error["message"]


def refused(host: LiveHost, method: str, path: str, body: object = None) -> dict[str, Any]:
    with pytest.raises(RemoteError) as caught:
        host.call(method, path, body)
    return caught.value.as_dict()


def failed(host: LiveHost, method: str, path: str, body: object = None) -> dict[str, Any]:
    """The error of a long verb that was let in."""
    ended = host.end_of(Operation.model_validate(host.call(method, path, body)))
    assert ended.state is OperationState.FAILED and ended.error is not None, ended
    return ended.error


def cli(host: LiveHost, *arguments: str, code: str) -> dict[str, Any]:
    """Run the command line with --format json; the exit code must be that of the kind `code`."""
    arguments = (*arguments, "--format", "json")
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments],
        env={**os.environ, "HOLDFAST_SOCKET": str(host.state.socket)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == EXIT_CODES[code], done
    wire: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    return wire


HOSTILE = ["../x", "x" * 300, "two\nlines", "smile 😀", "", ".", "..", "a/b", "-rf", "x\x00y", "end."]
HOSTILE += ["\u202eevil"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names(shared: LiveHost, name: str) -> None:
    error = refused(shared, "POST", "/v1/vms", plain_vm(name))
    well_said(error, "bad-request", "InvalidInput", "name")
    assert str(error["value"]) == name[:200]


def test_hostile_names_on_the_command_line(shared: LiveHost) -> None:
    for name in ("../x", "x" * 300, "two\nlines", "smile 😀"):
        error = cli(shared, "vm", "create", name, "--memory", "64MiB", code="InvalidInput")
        well_said(error, "bad-request", "InvalidInput", "name")


def test_names_that_are_taken(shared: LiveHost, small: SmallGuest) -> None:
    shared.do("POST", "/v1/vms", small_vm("taken", small.append))
    for name in ("taken", "TAKEN"):
        error = refused(shared, "POST", "/v1/vms", small_vm(name, small.append))
        well_said(error, "vm-name-taken", "Conflict", "taken")
    error = cli(shared, "vm", "create", "Taken", "--memory", "64MiB", code="Conflict")
    well_said(error, "vm-name-taken", "Conflict", "taken")
    shared.do("POST", "/v1/vms", small_vm("other", small.append))
    for verb in ("rename", "clone"):
        error = refused(shared, "POST", f"/v1/vms/other/{verb}", {"name": "Taken"})
        well_said(error, "vm-name-taken", "Conflict", "taken")
    well_said(
        refused(shared, "POST", "/v1/vms/other/rename", {"name": "../x"}), "bad-request", "InvalidInput"
    )
    check_invariants(shared)
    # A folder of somebody else is not taken over.
    (shared.state.vms / "foreign").mkdir()
    error = refused(shared, "POST", "/v1/vms", small_vm("Foreign", small.append))
    well_said(error, "vm-folder-exists", "Conflict", "oreign")
    (shared.state.vms / "foreign").rmdir()
    for name in ("taken", "other"):
        shared.do("DELETE", f"/v1/vms/{name}")


def test_more_memory_than_the_host_has(shared: LiveHost) -> None:
    error = refused(shared, "POST", "/v1/vms", plain_vm("big", memory="100TiB"))
    well_said(error, "not-enough-memory", "Insufficient", "100")
    assert error["value"] == 100 * 1024**4
    error = cli(shared, "vm", "create", "big", "--memory", "100TiB", code="Insufficient")
    well_said(error, "not-enough-memory", "Insufficient", "100")
    for absurd in ("0", "-1GiB", "1XiB", "99999999TiB", "8"):
        error = refused(shared, "POST", "/v1/vms", plain_vm("big", memory=absurd))
        well_said(error, "bad-request", "InvalidInput", "memory")


def test_impossible_numbers_of_cpus(shared: LiveHost) -> None:
    for cpus in (0, -1, 5000, "many"):
        error = refused(shared, "POST", "/v1/vms", plain_vm("many", cpus=cpus))
        well_said(error, "bad-request", "InvalidInput", "cpus")
        assert error["value"] == cpus
    for text in ("0", "-1", "5000"):
        well_said(
            cli(shared, "vm", "create", "many", "--cpus", text, code="InvalidInput"),
            "bad-request",
            "InvalidInput",
        )


def test_what_is_not_there(shared: LiveHost, small: SmallGuest) -> None:
    for method, path in (("GET", ""), ("POST", "/start"), ("POST", "/kill"), ("DELETE", "")):
        well_said(refused(shared, method, f"/v1/vms/ghost{path}"), "vm-not-found", "NotFound", "ghost")
    well_said(cli(shared, "vm", "start", "ghost", code="NotFound"), "vm-not-found", "NotFound", "ghost")
    disk = {"image": "nowhere-9"}
    error = refused(shared, "POST", "/v1/vms", plain_vm("x", disks=[disk]))
    well_said(error, "image-not-found", "NotFound", "nowhere-9")
    error = refused(shared, "POST", "/v1/vms", plain_vm("x", disks=[{"image": "small-kernel"}]))
    well_said(error, "wrong-image-kind", "InvalidInput", "small-kernel")
    error = refused(shared, "POST", "/v1/vms", plain_vm("x", nics=[{"switch": "no such"}]))
    well_said(error, "switch-not-found", "NotFound", "no such")


def _qcow2(path: Path, *options: str, size: str = "64M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, size], check=True)
    return path


def _bad_images(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name to file and the id that it must be refused with."""
    truncated = _qcow2(folder / "truncated")
    filling = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 8M", str(truncated)]
    subprocess.run(filling, check=True, capture_output=True)
    os.truncate(truncated, truncated.stat().st_size // 2)
    text = folder / "text"
    text.write_text("I am no disk.\n" * 100)
    lying = _qcow2(folder / "lying")
    with lying.open("r+b") as file:
        file.seek(24)  # the size that the guest sees (docs/interop/qcow2.txt)
        file.write((1 << 62).to_bytes(8, "big"))
    backed = _qcow2(folder / "backed", "-u", "-b", "/etc/shadow", "-F", "raw")
    outside = folder / "outside"
    _qcow2(outside, "-o", f"data_file={folder}/outside.raw,data_file_raw=on")
    return {
        "truncated": (truncated, "image-truncated"),
        "text": (text, "image-not-recognized"),
        "lying": (lying, "image-size-absurd"),
        "backed": (backed, "image-has-backing-file"),
        "outside": (outside, "image-has-data-file"),
    }


def test_images_that_are_not_what_they_say(shared: LiveHost, tmp_path: Path) -> None:
    for name, (file, id_) in _bad_images(tmp_path).items():
        with shared.client() as client:
            upload = client.upload(file)
        error = failed(shared, "POST", "/v1/images/import", {"upload": upload.id, "name": name, "kind": None})
        well_said(error, id_, "InvalidInput")
        assert "root:" not in json.dumps(error)
        assert not list((shared.state.scratch / "uploads").iterdir())
    names = {name for image in shared.call("GET", "/v1/images")["items"] for name in image["names"]}
    assert names == {"small-kernel", "small-initrd"}
    backed = tmp_path / "backed"
    error = cli(shared, "image", "import", str(backed), "--name", "backed", code="InvalidInput")
    well_said(error, "image-has-backing-file", "InvalidInput", "/etc/shadow")
    assert len(list(shared.state.images.iterdir())) == 2


def test_a_disk_smaller_than_its_image(shared: LiveHost, tmp_path: Path) -> None:
    shared.add_image(_qcow2(tmp_path / "disk"), "empty-disk")
    error = refused(shared, "POST", "/v1/vms", plain_vm("x", disks=[{"image": "empty-disk", "size": "1MiB"}]))
    well_said(error, "disk-smaller-than-image", "InvalidInput", "64")
    shared.call("DELETE", "/v1/images/empty-disk")


def test_qemu_that_dies_during_start(shared: LiveHost, small: SmallGuest) -> None:
    """It may not read its initrd: QEMU says so and ends."""
    shared.do("POST", "/v1/vms", small_vm("doomed", small.append))
    digest = shared.call("GET", "/v1/images/small-initrd")["digest"].removeprefix("sha256:")
    content = shared.state.images / digest / "content"
    mode = content.stat().st_mode
    content.chmod(0)
    try:
        error = failed(shared, "POST", "/v1/vms/doomed/start")
        well_said(error, "qemu-ended", "Failed", "initrd")
        assert shared.vm("doomed").state is VmState.OFF
        check_invariants(shared)
        error = failed(shared, "POST", "/v1/vms", small_vm("still-born", small.append, start=True))
        well_said(error, "qemu-ended", "Failed", "initrd")
    finally:
        content.chmod(mode)
    assert [each["name"] for each in check_invariants(shared)] == ["doomed"]
    shared.do("DELETE", "/v1/vms/doomed")


def test_an_agent_that_never_answers(shared: LiveHost, small: SmallGuest) -> None:
    mute = small.append + " rdinit=/bin/busybox -- sleep 1000"
    shared.do("POST", "/v1/vms", small_vm("mute", mute, start=True))
    view = shared.vm("mute")
    assert view.state is VmState.RUNNING and view.guest.agent == "waiting"
    error = refused(shared, "POST", "/v1/vms/mute/exec", {"argv": ["true"]})
    well_said(error, "guest-agent-not-there", "Unsupported", "mute")
    error = cli(shared, "vm", "stop", "mute", "--timeout", "2", code="TimedOut")
    well_said(error, "guest-did-not-stop", "TimedOut", "mute", "2")
    assert shared.vm("mute").state is VmState.RUNNING
    shared.do("DELETE", "/v1/vms/mute", force="true")


# Daemons of their own


def _serve(host: LiveHost) -> tuple[int, str]:
    """A second daemon on the same folders, to its end."""
    argv = [sys.executable, "-m", "holdfast", "serve"]
    argv += ["--state", str(host.state.root), "--runtime", str(host.state.runtime)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_two_daemons_on_one_folder(shared: LiveHost) -> None:
    code, said = _serve(shared)
    assert code == EXIT_CODES["Conflict"], said
    assert "state-folder-in-use" in said and str(shared.state.root) in said
    shared.call("GET", "/v1/health")


def test_records_of_a_newer_version(tmp_path: Path) -> None:
    with live_host(tmp_path) as host:
        host.stop()
        with contextlib.closing(sqlite3.connect(host.state.catalog)) as records:
            records.execute("UPDATE alembic_version SET version_num = '9999'")
            records.commit()
        before = host.state.catalog.read_bytes()
        code, said = _serve(host)
        assert code == EXIT_CODES["Unsupported"], said
        assert "records-newer" in said and "9999" in said and "newer version" in said
        assert host.state.catalog.read_bytes() == before


def test_a_stale_socket_is_replaced_and_a_strangers_file_is_not(tmp_path: Path) -> None:
    with live_host(tmp_path) as host:
        host.kill()
        assert host.state.socket.exists()
        host.start()
        host.stop()
        host.state.socket.unlink(missing_ok=True)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as other:
            other.bind(str(host.state.socket))
            other.listen()
            code, said = _serve(host)
        assert code == EXIT_CODES["Conflict"] and "socket-in-use" in said, said
        host.state.socket.unlink()
        host.state.socket.write_text("precious")
        code, said = _serve(host)
        assert code != 0 and str(host.state.socket) in said and "Traceback" not in said, said
        assert host.state.socket.read_text() == "precious"


class NamespacedHost(LiveHost):
    """A daemon that sees other mounts than its test."""

    prelude = "true"

    def launch(self) -> None:
        argv = [sys.executable, "-m", "holdfast", "serve"]
        argv += ["--state", str(self.state.root), "--runtime", str(self.state.runtime)]
        script = f'{self.prelude} && exec "$@"'
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *argv],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )


@needs_root
def test_a_missing_ovmf(tmp_path: Path) -> None:
    host = NamespacedHost(tmp_path)
    host.prelude = "mount -t tmpfs none /usr/share/qemu/firmware"
    try:
        host.start()
        error = refused(host, "POST", "/v1/vms", plain_vm("x"))
        well_said(error, "firmware-missing", "Unsupported")
        assert "ovmf" in error["cure"]
        check = host.call("GET", "/v1/host/check")
        assert any("missing" in json.dumps(line) for line in check if "firmware" in json.dumps(line).lower())
        assert check_invariants(host) == []
    finally:
        host.close()


@needs_root
def test_a_qemu_that_only_complains(tmp_path: Path, small: SmallGuest) -> None:
    """Every QEMU of this daemon ends at once with a message."""
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\necho 'the moon is in the wrong phase' >&2\nexit 1\n")
    fake.chmod(0o755)
    host = NamespacedHost(tmp_path)
    try:
        host.start()
        with_small_images(host, small)
        host.do("POST", "/v1/vms", small_vm("first", small.append))
        host.kill()
        host.prelude = f"mount --bind {fake} /usr/bin/qemu-system-x86_64"
        host.start()
        error = refused_or_failed(host, "POST", "/v1/vms/first/start")
        assert error["kind"] in ("Failed", "Unsupported") and error["cure"], error
        assert "the moon is in the wrong phase" in json.dumps(error)
        check_invariants(host)
    finally:
        host.close()


def refused_or_failed(host: LiveHost, method: str, path: str) -> dict[str, Any]:
    try:
        return failed(host, method, path)
    except RemoteError as error:
        return error.as_dict()


@needs_root
def test_a_full_disk_in_the_middle_of_a_create(tmp_path: Path, small: SmallGuest) -> None:
    """The state folder lies on a small file system of its own, which runs full meanwhile."""
    host = LiveHost(tmp_path)
    host.state.root.mkdir(mode=0o711, parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1300m,mode=711", "none", host.state.root], check=True)
    try:
        host.start()
        with_small_images(host, small)
        plain = tmp_path / "plain"
        with plain.open("wb") as file:
            for _ in range(100):
                file.write(os.urandom(1 << 20))
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", plain, tmp_path / "disk"], check=True)
        host.add_image(tmp_path / "disk", "hundred", "disk")
        filler = host.state.root / "filler"
        free = os.statvfs(host.state.root)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (180 << 20))
        body = small_vm("full", small.append, disks=[{"image": "hundred", "full_copy": True}])
        begun = Operation.model_validate(host.call("POST", "/v1/vms", body))
        more = host.state.root / "more"
        deadline = time.monotonic() + 20
        with contextlib.suppress(OSError), more.open("wb") as file:
            while time.monotonic() < deadline:
                file.write(bytes(1 << 20))
                file.flush()
        ended = host.end_of(begun, limit=60)
        assert ended.state is OperationState.FAILED and ended.error is not None, ended
        filler.unlink()
        more.unlink()
        well_said(ended.error, "no-space", "Insufficient")
        assert check_invariants(host) == []
        # And refused beforehand where it is plain that it cannot fit.
        with filler.open("wb") as file:
            free = os.statvfs(host.state.root)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (20 << 20))
        well_said(refused(host, "POST", "/v1/vms", body), "no-space", "Insufficient")
        filler.unlink()
        host.do("POST", "/v1/vms", body)
        host.do("DELETE", "/v1/vms/full")
    finally:
        host.kill()
        subprocess.run(["umount", "--lazy", host.state.root], check=True)
        host.close()
        shutil.rmtree(host.state.root, ignore_errors=True)
