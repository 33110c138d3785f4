"""Disks' files are written out before QEMU has to; whatever hangs or is no disk holds up no cycle."""

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from holdfast.replication import writing_out
from holdfast.replication.writing_out import WritingOut
from holdfast.spec.attachment import Layer
from holdfast.spec.vm import Disk
from holdfast.storage.pools.book import PoolNotFound

A, B = (Disk(id=each, volume=each, size=4096) for each in "ab")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inodes that were written out."""
    found: list[int] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        real(fd)
        found.append(os.fstat(fd).st_ino)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return found


def layers(folder: Path, disk: Disk) -> tuple[Layer, ...]:
    names = (disk.id, f"{disk.id}.below")
    return tuple(Layer.of_file(folder / each, "qcow2", each) for each in names)


async def test_the_top_layers_are_written_out(tmp_path: Path, synced: list[int]) -> None:
    for name in ("a", "a.below", "b", "b.below"):
        (tmp_path / name).write_bytes(b"x")
    await WritingOut(lambda _, disk: layers(tmp_path, disk)).write_out("web", [A, B])
    assert synced == [(tmp_path / name).stat().st_ino for name in "ab"]


async def test_what_is_no_disk_is_left_alone(tmp_path: Path, synced: list[int]) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "a").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "b")
    await WritingOut(lambda _, disk: layers(tmp_path, disk)).write_out("web", [A, B])
    assert synced == []


async def test_a_pool_that_is_gone_keeps_no_other_disk_back(tmp_path: Path, synced: list[int]) -> None:
    (tmp_path / "b").write_bytes(b"x")

    def chain(_: str, disk: Disk) -> tuple[Layer, ...]:
        if disk is A:
            raise PoolNotFound("there is no pool 'fast'", value="fast")
        return layers(tmp_path, disk)

    await WritingOut(chain).write_out("web", [A, B])
    assert synced == [(tmp_path / "b").stat().st_ino]


async def test_storage_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"x")
    goes_on, asked = threading.Event(), []

    def fdatasync(fd: int) -> None:
        asked.append(fd)
        goes_on.wait(10)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(writing_out, "_SECONDS", 0.05)
    writing = WritingOut(lambda _, disk: layers(tmp_path, disk))
    begun = time.monotonic()
    for _ in range(20):
        await writing.write_out("web", [A])
    assert time.monotonic() - begun < 5
    assert len(asked) == 1
    goes_on.set()
    async with asyncio.timeout(5):
        while len(asked) == 1:
            await writing.write_out("web", [B])
            await asyncio.sleep(0.01)
