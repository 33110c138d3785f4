"""Import, pull and build as operations: done, refused and undone."""

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator, Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from storage_rooms import Rooms

from holdfast.catalog.events import EventLog
from holdfast.operations.engine import Operations
from holdfast.operations.images import ImageWork, procedures
from holdfast.spec.image import Image, ImageKind, ImageOrigin
from holdfast.spec.image_requests import ImageBuild, ImagePull
from holdfast.spec.operation import Operation, OperationState
from holdfast.storage.build import Built
from holdfast.storage.download import Downloader, Patience
from holdfast.storage.images import ImageNameTaken, ImageNotFound
from holdfast.storage.inspect import inspect

MIB = 1 << 20


class FakeBuilder:
    """Makes a small qcow2 in place of a distribution; `hangs` waits until somebody cancels."""

    hangs = False

    async def build(
        self, recipe: str, target: Path, work: Path, owner: str, progress: Callable[[float, str], None]
    ) -> Built:
        assert list(work.iterdir()) == []
        (work / "half").touch()
        progress(0.5, "half")
        if self.hangs:
            await asyncio.Event().wait()
        make("qcow2", target)
        return Built(virtual_size=MIB)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Bench:
    def __init__(self, rooms: Rooms, operations: Operations, builder: FakeBuilder) -> None:
        self.rooms, self.operations, self.builder = rooms, operations, builder
        self.work = ImageWork(operations, rooms.images)

    def upload(self, format: str = "qcow2", *options: str) -> Path:
        path = self.rooms.state.scratch / "uploads" / "1"
        path.parent.mkdir(exist_ok=True)
        make(format, path, *options)
        return path

    async def end(self, operation: Operation) -> Operation:
        ended = await asyncio.wait_for(self.operations.wait(operation.id), 30)
        kept = [each.name for each in self.rooms.state.scratch.iterdir() if each.name != "uploads"]
        assert kept == []
        return ended

    async def imported(self, path: Path, name: str = "one", kind: ImageKind | None = None) -> Operation:
        return await self.end(await self.work.import_file(path, name, kind, "disk.img", "me"))


def make(format: str, path: Path, *options: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", format, *options, str(path), "1M"], check=True)


@pytest.fixture
async def bench(rooms: Rooms) -> AsyncIterator[Bench]:
    operations = Operations(rooms.catalog, EventLog(rooms.catalog), rooms.state.operations, idle_poll=0.05)
    builder = FakeBuilder()
    patience = Patience(pauses=(0.01,), reserve=0)
    for each in procedures(
        rooms.state, rooms.processes, rooms.images, builder, Downloader(patience), rooms.identity
    ):
        operations.register(each)
    await operations.launch()
    yield Bench(rooms, operations, builder)
    await operations.close()


@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vpc", "vhdx"])
async def test_a_disk_is_imported_as_qcow2(bench: Bench, format: str) -> None:
    path = bench.upload(format)
    ended = await bench.imported(path)
    assert ended.state is OperationState.SUCCEEDED, ended.error
    image: Image = await bench.rooms.images.get("one")
    assert ended.result == {"image": "one", "digest": image.digest}
    assert (image.kind, image.origin, image.source) == (ImageKind.DISK, ImageOrigin.IMPORTED, "disk.img")
    content = await bench.rooms.images.path(image.digest)
    assert inspect(content).format == "qcow2"
    assert image.virtual_size >= MIB
    assert not path.exists()


async def test_other_kinds_are_stored_as_they_came(bench: Bench) -> None:
    path = bench.upload()
    path.write_bytes(b"\x1f\x8b" + bytes(98))
    assert (await bench.imported(path)).state is OperationState.SUCCEEDED
    image = await bench.rooms.images.get("one")
    assert image.kind is ImageKind.INITRD
    assert image.digest == "sha256:" + hashlib.sha256(b"\x1f\x8b" + bytes(98)).hexdigest()
    assert (await bench.rooms.images.path(image.digest)).stat().st_mode & 0o777 == 0o444


async def test_a_hostile_file_is_refused_and_nothing_is_left(bench: Bench) -> None:
    path = bench.upload("qcow2", "-u", "-F", "raw", "-b", "/etc/shadow")
    ended = await bench.imported(path)
    assert ended.state is OperationState.FAILED
    assert ended.error is not None
    assert ended.error["id"] == "image-has-backing-file"
    assert ended.error["value"] == "/etc/shadow"
    assert not path.exists()
    with pytest.raises(ImageNotFound):
        await bench.rooms.images.get("one")
    assert list(bench.rooms.state.images.iterdir()) == []


async def test_a_taken_name_is_refused_at_once(bench: Bench) -> None:
    await bench.imported(bench.upload())
    with pytest.raises(ImageNameTaken):
        await bench.work.import_file(bench.upload(), "ONE", None, "", "me")
    with pytest.raises(ImageNameTaken):
        await bench.work.build(ImageBuild(recipe="debian-12", name="one"), "me")


async def test_a_name_taken_meanwhile_stays_what_it_is(bench: Bench) -> None:
    file = bench.upload("qcow2")
    first = await bench.work.import_file(file, "one", None, "", "me")
    other = bench.rooms.state.scratch / "uploads" / "2"
    other.write_bytes(b"\x1f\x8b" + bytes(98))
    second = await bench.work.import_file(other, "one", None, "", "me")
    states = {(await bench.operations.wait(each.id)).state for each in (first, second)}
    assert states == {OperationState.SUCCEEDED, OperationState.FAILED}
    assert (await bench.rooms.images.get("one")).names == ("one",)
    assert len(list(bench.rooms.state.images.iterdir())) == 1


async def test_built_and_cancelled(bench: Bench) -> None:
    ended = await bench.end(await bench.work.build(ImageBuild(recipe="debian-12"), "me"))
    assert ended.state is OperationState.SUCCEEDED, ended.error
    assert (await bench.rooms.images.get("debian-12")).origin is ImageOrigin.BUILT
    bench.builder.hangs = True
    operation = await bench.work.build(ImageBuild(recipe="debian-12", name="two"), "me")
    while (await bench.operations.get(operation.id)).phase != "build":
        await asyncio.sleep(0.01)
    while not list(bench.rooms.state.scratch.glob("operation-*/work/half")):
        await asyncio.sleep(0.01)
    await bench.operations.cancel(operation.id)
    assert (await bench.end(operation)).state is OperationState.CANCELLED


async def test_pulled(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    make("qcow2", tmp_path / "disk.qcow2")
    digest = hashlib.sha256((tmp_path / "disk.qcow2").read_bytes()).hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/disk.qcow2"
        request = ImagePull(source=f"{url}?key=secret", checksum=f"sha256:{digest}")
        ended = await bench.end(await bench.work.pull(request, "me"))
        assert ended.state is OperationState.SUCCEEDED, ended.error
        image = await bench.rooms.images.get("disk")
        assert (image.origin, image.source) == (ImageOrigin.PULLED, url)
        wrong = ImagePull(source=url, name="two", checksum=f"sha256:{'0' * 64}")
        ended = await bench.end(await bench.work.pull(wrong, "me"))
        assert ended.error is not None
        assert ended.error["id"] == "checksum-mismatch"
    finally:
        server.shutdown()
        server.server_close()
