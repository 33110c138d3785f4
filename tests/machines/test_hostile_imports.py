"""Sources that lie or run out in a live daemon: a clear error, no VM, nothing left behind."""

import gzip
import http.server
import os
import random
import struct
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from appliances import ova, wrapped
from boot_disks import boot_disk
from invariants import check_invariants
from live_host import LiveHost, live_host
from loop_files import LoopFile

from holdfast.cli.import_sources import sources_at
from holdfast.cli.importing import hand_over
from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
SECTOR = 512


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHost]:
    with live_host(tmp_path_factory.mktemp("hostile")) as running:
        yield running


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk that UEFI would start from, with 3 MiB that do not pack."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "loader").write_bytes(random.Random(3).randbytes(3 * MIB))
    return boot_disk(folder / "disk.raw", {"EFI/BOOT/BOOTX64.EFI": folder / "loader"})


def converted(disk: Path, target: Path, subformat: str, *more: str) -> Path:
    options = ["-O", "vmdk", "-o", f"subformat={subformat}", *more]
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, disk, target], check=True)
    return target


def request(host: LiveHost, path: Path) -> dict[str, Any]:
    with host.client() as client:
        return {"files": hand_over(client, sources_at(path, [])[0])}


def outcome(host: LiveHost, path: Path) -> str:
    """Id of what stood in the way, before the operation or in it; empty where the VM was made."""
    try:
        begun = Operation.model_validate(host.call("POST", "/v1/imports", request(host, path)))
    except RemoteError as refused:
        assert refused.cure
        return str(refused.value[0]) if refused.wire_id == "not-importable" else refused.wire_id
    ended = host.end_of(begun)
    if ended.state is OperationState.SUCCEEDED:
        return ""
    assert ended.error is not None and ended.error["cure"], ended
    return str(ended.error["id"])


def doubled_grain(disk: Path, target: Path) -> Path:
    """Its second grain with data lies where the first one does."""
    data = bytearray(converted(disk, target, "monolithicSparse").read_bytes())
    (directory,) = struct.unpack_from("<Q", data, 56)
    (table,) = struct.unpack_from("<I", data, directory * SECTOR)
    places = range(table * SECTOR, (table + 4) * SECTOR, 4)
    used = [at for at in places if struct.unpack_from("<I", data, at)[0] > 1]
    data[used[1] : used[1] + 4] = data[used[0] : used[0] + 4]
    target.write_bytes(data)
    return target


def elsewhere(disk: Path, target: Path) -> Path:
    data = converted(disk, target, "monolithicSparse").read_bytes()
    start = data.index(b'SPARSE "')
    line = b'FLAT "/etc/shadow" 0\n'
    target.write_bytes(data[:start] + line + data[start + len(line) :])
    return target


def vast(disk: Path, target: Path) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", target, "60T"], check=True)
    return target


def hollow(disk: Path, target: Path, size: int = 4 * GIB) -> Path:
    """A qcow2 all of whose clusters are one compressed cluster, whose tables are one table."""
    raw = target.with_suffix(".one")
    raw.write_bytes(b"one cluster".ljust(64, b".") * 1024)
    os.truncate(raw, size)
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, target], check=True)
    data = bytearray(target.read_bytes())
    (count,) = struct.unpack_from(">I", data, 36)
    (l1,) = struct.unpack_from(">Q", data, 40)
    (entry,) = struct.unpack_from(">Q", data, l1)
    l2 = entry & 0x00FFFFFFFFFFFE00
    data[l1 : l1 + 8 * count] = data[l1 : l1 + 8] * count
    data[l2 : l2 + 64 * 1024] = data[l2 : l2 + 8] * 8192
    target.write_bytes(data)
    return target


def hollow_vhdx(disk: Path, target: Path) -> Path:
    """Its block table lists one block 4096 times."""
    raw = target.with_suffix(".one")
    raw.write_bytes(b"a" * MIB)
    os.truncate(raw, 4 * GIB)
    options = ["-O", "vhdx", "-o", "subformat=dynamic,block_size=1M"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, raw, target], check=True)
    data = bytearray(target.read_bytes())
    guid = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
    (table,) = struct.unpack_from("<Q", data, data.index(guid, 192 * 1024) + 16)
    data[table : table + 8 * 4096] = data[table : table + 8] * 4096
    target.write_bytes(data)
    return target


def cut(disk: Path, target: Path) -> Path:
    whole = converted(disk, target, "streamOptimized")
    os.truncate(whole, whole.stat().st_size - 70_000)
    return whole


def packed(disk: Path, target: Path, part: int | None = None) -> Path:
    data = gzip.compress(converted(disk, target, "streamOptimized").read_bytes(), 1)
    target.write_bytes(data[:part])
    return target


Made = Callable[[Path, Path], Path]
GZIP = 'ovf:compression="gzip"'
BAD: dict[str, tuple[Made, str, str]] = {
    "two grains in one place": (doubled_grain, "", "image-damaged"),
    "an extent to /etc/shadow": (elsewhere, "", "image-names-other-files"),
    "64 TB in 2 MiB": (vast, "", "disk-expands-absurdly"),
    "one cluster for all 4 GiB": (hollow, "", "disk-expands-absurdly"),
    "one block for all 4 GiB": (hollow_vhdx, "", "disk-expands-absurdly"),
    "a stream that was cut off": (cut, "", "image-truncated"),
    "a gzip member that was cut off": (lambda disk, to: packed(disk, to, -5000), GZIP, "gzip-damaged"),
    "a gzip member that is none": (
        lambda disk, to: converted(disk, to, "streamOptimized"), GZIP, "gzip-damaged"
    ),
    "a gzip file of empty members": (
        lambda disk, target: _write(target, gzip.compress(b"") * 20_000), GZIP, "gzip-damaged"
    ),
    "more in a gzip member than was said": (
        lambda disk, target: _write(target, gzip.compress(bytes(200 * MIB), 1)),
        GZIP,
        "disk-expands-absurdly",
    ),
}  # fmt: skip


def _write(target: Path, data: bytes) -> Path:
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("case", BAD)
def test_each_is_refused_and_leaves_nothing(shared: LiveHost, disk: Path, tmp_path: Path, case: str) -> None:
    made, attributes, refusal = BAD[case]
    file = made(disk, tmp_path / "file")
    path = wrapped(tmp_path / "a.ova", "bad", file, disk.stat().st_size, attributes)
    assert outcome(shared, path) == refusal
    assert check_invariants(shared) == []


def test_a_gzip_member_of_several_parts_is_brought_over_whole(
    shared: LiveHost, disk: Path, tmp_path: Path
) -> None:
    data = converted(disk, tmp_path / "file", "streamOptimized").read_bytes()
    half = len(data) // 2
    file = _write(tmp_path / "file", gzip.compress(data[:half]) + gzip.compress(data[half:]))
    assert outcome(shared, wrapped(tmp_path / "a.ova", "parts", file, disk.stat().st_size, GZIP)) == ""
    volume = shared.state.vm("parts") / "disk0.qcow2"
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", disk, volume], check=True)
    shared.do("DELETE", "/v1/vms/parts")
    assert check_invariants(shared) == []


@contextmanager
def dropping(data: bytes, after: int) -> Iterator[tuple[str, list[str]]]:
    """A server of `data` whose first answer breaks off; and the ranges that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", '"one"')
            self.send_header("Content-Length", str(len(data) - start))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(data[start : after if len(asked) == 1 else None])
            self.close_connection = True

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nobody reads it."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/web.ova", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_address_that_drops_in_the_middle_goes_on_where_it_was(
    shared: LiveHost, disk: Path, tmp_path: Path
) -> None:
    data = ova(tmp_path / "a.ova", "fetched", "vsphere", disk, "raw").read_bytes()
    with dropping(data, len(data) // 2) as (url, asked):
        fetched = shared.do("POST", "/v1/imports/fetch", {"url": url}).result
    assert fetched is not None and fetched["size"] == len(data)
    assert len(asked) == 2 and asked[1] == f"bytes={len(data) // 2}-"
    files = [{"name": fetched["name"], "upload": fetched["upload"]}]
    shared.do("POST", "/v1/imports", {"files": files})
    shared.do("DELETE", "/v1/vms/fetched")
    assert check_invariants(shared) == []
    assert list((shared.state.scratch / "uploads").iterdir()) == []


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHost]:
    """A daemon whose whole state lies on 1 GiB, of which it leaves one half to others."""
    if os.geteuid() != 0:
        pytest.skip("mounts a file system")
    host = LiveHost(tmp_path_factory.mktemp("cramped"))
    small = LoopFile.make(host.state.root.parent, "ext4", GIB)
    try:
        small.unmount()
        host.state.root.mkdir(mode=0o711)
        small.root = host.state.root
        small.mount()
        (small.root / "lost+found").rmdir()
        small.root.chmod(0o711)
        host.start()
        yield host
    finally:
        host.kill()
        small.unmount()  # what is mounted cannot be removed
        host.close()


def test_no_room_in_the_middle_takes_everything_back(cramped: LiveHost, disk: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.raw"
    large.write_bytes(disk.read_bytes())
    with large.open("r+b") as file:
        file.seek(4 * MIB)
        for _ in range(6):
            file.write(random.Random(5).randbytes(MIB))
    body = request(cramped, ova(tmp_path / "a.ova", "full", "vsphere", large, "raw"))
    begun = Operation.model_validate(cramped.call("POST", "/v1/imports", body))
    filler = cramped.state.root / "filler"
    with filler.open("wb") as file:
        found = os.statvfs(filler.parent)
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - 4 * MIB)
    ended = cramped.end_of(begun)
    assert ended.error is not None and ended.error["id"] == "no-space", ended
    filler.unlink()
    assert check_invariants(cramped) == []


def test_data_that_a_small_file_claims_is_refused_where_there_is_no_room_for_it(
    cramped: LiveHost, disk: Path, tmp_path: Path
) -> None:
    """Not absurd, only more than there is."""
    size = 704 * MIB
    path = wrapped(tmp_path / "a.ova", "claims", hollow(disk, tmp_path / "file", size), size)
    plan = cramped.call("POST", "/v1/imports/plan", request(cramped, path))
    assert plan["disks"][0]["data"] == size and plan["disks"][0]["file_size"] < size // 1000
    (problem,) = [each for each in plan["findings"] if each["severity"] == "error"]
    assert problem["id"] == "no-space" and "about 768 MiB are needed" in problem["text"], problem
    assert outcome(cramped, path) == "no-space"
    assert check_invariants(cramped) == []


def test_a_thin_disk_of_a_tebibyte_takes_the_room_of_its_data(
    cramped: LiveHost, disk: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "thin.raw"
    raw.write_bytes(disk.read_bytes())
    os.truncate(raw, TIB)
    body = request(cramped, raw)
    plan = cramped.call("POST", "/v1/imports/plan", body)
    assert plan["importable"] and plan["disks"][0]["data"] < 32 * MIB and plan["space_needed"] < 128 * MIB
    cramped.do("POST", "/v1/imports", body)
    volume = cramped.state.vm("thin") / "disk0.qcow2"
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, volume], check=True)
    cramped.do("DELETE", "/v1/vms/thin")
    assert check_invariants(cramped) == []
