"""A disk copied in rounds into a real volume: cut off, gone on with, zeros where the source passes over."""

import asyncio
import errno
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from holdfast.host.folders import StateFolder
from holdfast.host.processes import Identity, Processes
from holdfast.host.space import NoSpace
from holdfast.operations.procedure import Job
from holdfast.spec.attachment import Layer
from holdfast.storage.convert import VOLUME_OPTIONS
from holdfast.storage.nbd import NbdFailed, NbdNoRoom, NbdWriter
from holdfast.storage.remote_disk import Area, Piece, after
from holdfast.storage.volume_writing import volume_writer
from holdfast.vm.vsphere_copy import Copying, Meter

MIB = 1 << 20
SIZE = 8 * MIB


class Dropped(Exception):
    pass


@dataclass
class Source:
    """A remote disk that leaves out pieces of zeros, and drops after some."""

    content: bytes
    drop_after: int | None = None
    served: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.content)

    async def areas(self, since: str | None) -> tuple[Area, ...]:
        return (Area(0, self.size),)

    async def read(self, areas: Sequence[Area]) -> AsyncGenerator[Piece, None]:
        for area in areas:
            for at in range(area.start, area.end, 65536):
                data = self.content[at : min(at + 65536, area.end)]
                if not any(data):
                    continue
                if self.drop_after is not None and len(self.served) >= self.drop_after:
                    raise Dropped
                self.served.append(at)
                yield Piece(at, data)


@pytest.fixture
async def volume() -> AsyncIterator["Volume"]:
    root = Path(tempfile.mkdtemp(prefix="hf-copy-"))
    root.chmod(0o711)
    state = StateFolder(root / "state", root / "r")
    state.prepare()
    made = Volume(state, Processes(state), state.vms / "disk0.qcow2")
    made.make()
    yield made
    assert made.processes.find() == [] and not list(state.runtime.glob("part-*"))
    shutil.rmtree(root)


@dataclass
class Volume:
    state: StateFolder
    processes: Processes
    path: Path
    identity: Identity | None = field(
        default_factory=lambda: Identity(64321, 64321) if os.geteuid() == 0 else None
    )

    def make(self) -> None:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", VOLUME_OPTIONS, self.path, str(SIZE)]
        subprocess.run(argv, check=True)
        if self.identity:
            os.chown(self.path, self.identity.uid, self.identity.gid)

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[NbdWriter]:
        volume = Layer.of_file(self.path, "qcow2")
        async with volume_writer(
            self.processes, volume, self.state.runtime, owner="operation:x", identity=self.identity
        ) as writer:
            yield writer

    def content(self) -> bytes:
        assert not subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", self.path]).returncode
        raw = self.state.scratch / "raw"
        argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.path, raw]
        subprocess.run(argv, check=True)
        return raw.read_bytes()


async def copy(volume: Volume, note: dict[str, Any], source: Source, blank: bool) -> list[dict[str, Any]]:
    """What was kept durably, in order."""
    kept: list[dict[str, Any]] = []

    async def keep() -> None:
        kept.append(dict(note))

    told: list[float] = []
    job = Job("x", "k", "s", "a", {}, {}, lambda part, text: told.append(part), keep)
    async with volume.writer() as writer:
        areas = after(await source.areas(None), note["done"])
        meter = Meter(job, "copy", {"disk0": sum(each.length for each in areas)})
        await Copying(job, note, writer, meter).run(source, areas, blank)
    assert told == sorted(told) and told[-1] == 1.0 and meter.brought == 65536 * len(source.served)
    return kept


def disk(seed: int) -> bytes:
    """Noise, zeros, noise, zeros."""
    noise = random.Random(seed).randbytes
    return noise(2 * MIB) + bytes(MIB) + noise(MIB + 777) + bytes(SIZE - 4 * MIB - 777)


async def test_a_copy_goes_on_where_it_was_cut_off(volume: Volume) -> None:
    note: dict[str, Any] = {"done": 0}
    first = Source(disk(1), drop_after=20)
    with pytest.raises(Dropped):
        await copy(volume, note, first, blank=True)
    assert note["done"] == 20 * 65536
    second = Source(disk(1))
    await copy(volume, note, second, blank=True)
    assert min(second.served) == 20 * 65536
    assert note["done"] == SIZE and volume.content() == disk(1)


async def test_a_later_round_clears_what_became_zeros(volume: Volume) -> None:
    await copy(volume, {"done": 0}, Source(random.Random(3).randbytes(SIZE)), blank=True)
    note: dict[str, Any] = {"done": 0}
    with pytest.raises(Dropped):
        await copy(volume, note, Source(disk(2), drop_after=40), blank=False)
    await copy(volume, note, Source(disk(2)), blank=False)
    assert volume.content() == disk(2)


async def test_what_was_flushed_outlives_the_writing_program(volume: Volume) -> None:
    async with volume.writer() as writer:
        assert writer.size == SIZE
        await writer.write(12345, b"flushed" * 1000)
        await writer.zero(0, 4096)
        await writer.flush()
        (serving,) = volume.processes.find(owner="operation:x")
        os.kill(serving.ref.pid, signal.SIGKILL)
        with pytest.raises(NbdFailed):
            for _ in range(1000):
                await writer.write(MIB, b"lost")
                await asyncio.sleep(0)
    assert volume.content()[12345 : 12345 + 7000] == b"flushed" * 1000


async def test_a_volume_that_may_grow_no_more_is_said_so(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.storage.volume_writing.room_for", lambda _: MIB)
    with pytest.raises(NoSpace):
        async with volume.writer() as writer:
            await writer.write(0, random.Random(4).randbytes(4 * MIB))
            await writer.flush()
    assert volume.path.stat().st_size < 3 * MIB


async def test_a_full_file_system_is_said_so() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(struct.pack(">IIQ", 0x67446698, errno.ENOSPC, 1))
    server, client = socket.socketpair()
    with server:
        _, sending = await asyncio.open_unix_connection(sock=client)
        with pytest.raises(NbdNoRoom):
            await NbdWriter(reader, sending, SIZE).write(0, b"x")
        sending.close()


async def test_a_volume_is_left_whole_though_nothing_was_flushed(volume: Volume) -> None:
    async with volume.writer() as writer:
        for at in range(0, SIZE, MIB):
            await writer.write(at + 5000, b"left" * 1000)
    assert volume.content()[5000:9000] == b"left" * 1000


async def test_a_write_beyond_the_volume_is_an_error(volume: Volume) -> None:
    async with volume.writer() as writer:
        with pytest.raises(NbdFailed):
            await writer.write(SIZE, b"x" * 512)
