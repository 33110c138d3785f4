"""Disks made by sfdisk, mtools and qemu-img, read without them."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "guests"))

from boot_disks import boot_disk

from holdfast.spec.attachment import Layer
from holdfast.storage.boot_files import boot_volumes
from holdfast.storage.formats.fat import NotFat
from holdfast.storage.formats.qcow2_chain import open_chain
from holdfast.storage.formats.refusals import ImageDamaged, ImageFeatureUnknown, ImageNotRecognized

_LONG = "EFI/A Folder With a Long Name/another long name of a file.efi"


def qcow2(path: Path) -> Layer:
    return Layer.of_file(path, "qcow2")


def convert(source: Path, target: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", *options, source, target], check=True)
    return target


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("content") / "loader"
    path.write_bytes(random.Random(1).randbytes(700_001))
    return path


@pytest.mark.parametrize(("mib", "fat"), [(4, ()), (63, ()), (300, ("-F",))], ids=["12", "16", "32"])
def test_files_by_path_in_every_kind_of_fat(
    tmp_path: Path, content: Path, mib: int, fat: tuple[str, ...]
) -> None:
    files = {"EFI/BOOT/BOOTX64.EFI": content, _LONG: content, "README.TXT": content}
    disk = boot_disk(tmp_path / "disk.raw", files, mib, fat)
    data = content.read_bytes()
    with boot_volumes([Layer.of_file(disk, "raw")]) as (volume,):
        assert volume.system and volume.guid is not None
        for path in ("\\EFI\\BOOT\\BOOTX64.EFI", "/efi/boot/bootx64.efi", f"\\{_LONG}".upper(), "readme.txt"):
            assert volume.read(path) == data, path
        for path in ("\\EFI\\BOOT", "\\EFI\\BOOT\\NONE.EFI", "\\README.TXT\\x", "", "\\..\\..\\x"):
            assert volume.read(path) is None, path
        with pytest.raises(NotFat, match="more than"):
            volume._fat.read("README.TXT", 1000)


@pytest.mark.parametrize(
    "options",
    [
        ("-c",),
        ("-o", "cluster_size=128k,extended_l2=on"),
        ("-o", "compat=0.10,cluster_size=512"),
        ("-c", "-o", "cluster_size=2M"),
        ("-o", "lazy_refcounts=on"),
    ],
    ids=" ".join,
)
def test_every_layout_of_qcow2_shows_the_same(
    tmp_path: Path, content: Path, options: tuple[str, ...]
) -> None:
    raw = boot_disk(tmp_path / "disk.raw", {"EFI/BOOT/BOOTX64.EFI": content}, 5)
    image = convert(raw, tmp_path / "disk.qcow2", *options)
    with open_chain([qcow2(image)]) as disk:
        assert disk.size == raw.stat().st_size
        assert disk.read(0, disk.size) == raw.read_bytes()
        assert disk.read(disk.size - 10, 20) == bytes(20)


def test_a_chain_shows_what_was_written_last(tmp_path: Path, content: Path) -> None:
    """A longer overlay with subclusters written, zeroed and untouched, as a guest leaves it."""
    raw = boot_disk(tmp_path / "disk.raw", {"EFI/BOOT/BOOTX64.EFI": content}, 5)
    base = convert(raw, tmp_path / "base.qcow2", "-c")
    top, whole = tmp_path / "top.qcow2", tmp_path / "whole.raw"
    options = ["-o", "cluster_size=128k,extended_l2=on", "-b", base, "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, top, "9M"], check=True)
    writes = ["write -P 7 1052672 4096", "write -z 1100800 8192", "write -P 9 8M 70000", "discard 2M 64k"]
    commands = [part for each in writes for part in ("-c", each)]
    subprocess.run(["qemu-io", *commands, top], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-O", "raw", top, whole], check=True)
    with open_chain([qcow2(top), qcow2(base)]) as disk:
        assert disk.read(0, disk.size) == whole.read_bytes()


@pytest.fixture
def running(tmp_path: Path, content: Path) -> Iterator[Path]:
    """A disk that a QEMU process holds open for writing, with its locks."""
    raw = boot_disk(tmp_path / "disk.raw", {"EFI/BOOT/BOOTX64.EFI": content}, 5)
    image = convert(raw, tmp_path / "disk.qcow2")
    argv = ["qemu-storage-daemon", "--blockdev", "driver=file,node-name=f,filename=" + str(image)]
    argv += ["--blockdev", "driver=qcow2,node-name=d,file=f", "--chardev", "stdio,id=c", "--monitor", "c"]
    argv += ["--nbd-server", f"addr.type=unix,addr.path={tmp_path}/n"]
    argv += ["--export", "type=nbd,id=e,node-name=d,writable=on"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout and b"QMP" in process.stdout.readline()
    refused = subprocess.run(["qemu-img", "info", image], capture_output=True, check=False)
    assert refused.returncode and b"lock" in refused.stderr
    yield image
    process.kill()
    process.communicate()


def test_a_disk_in_use_is_read_beside_its_user(running: Path, content: Path) -> None:
    before = running.read_bytes()
    with boot_volumes([qcow2(running)]) as (volume,):
        assert volume.read("\\EFI\\BOOT\\BOOTX64.EFI") == content.read_bytes()
    assert running.read_bytes() == before


def test_the_backup_table_counts_where_the_first_is_destroyed(tmp_path: Path, content: Path) -> None:
    disk = boot_disk(tmp_path / "disk.raw", {"EFI/BOOT/BOOTX64.EFI": content}, 5)
    with disk.open("r+b") as file:
        file.seek(512)
        file.write(bytes(34 * 512))
    with boot_volumes([Layer.of_file(disk, "raw")]) as (volume,):
        assert volume.guid is not None and volume.read("\\EFI\\BOOT\\BOOTX64.EFI") == content.read_bytes()


def test_an_mbr(tmp_path: Path, content: Path) -> None:
    disk = boot_disk(tmp_path / "disk.raw", {"EFI/BOOT/BOOTX64.EFI": content}, 5)
    with disk.open("r+b") as file:
        file.seek(disk.stat().st_size - 33 * 512)
        file.write(bytes(33 * 512))
    table = f"label: dos\nstart=2048, size={5 * 2048}, type=ef\n"
    subprocess.run(["sfdisk", "-q", "--wipe", "always", disk], input=table, text=True, check=True)
    with boot_volumes([Layer.of_file(disk, "raw")]) as (volume,):
        assert volume.guid is None and volume.system
        assert volume.read("\\EFI\\BOOT\\BOOTX64.EFI") == content.read_bytes()


def test_what_cannot_be_read_is_refused(tmp_path: Path, content: Path) -> None:
    raw = boot_disk(tmp_path / "disk.raw", {"EFI/BOOT/BOOTX64.EFI": content}, 5)
    packed = convert(raw, tmp_path / "zstd.qcow2", "-c", "-o", "compression_type=zstd")
    with pytest.raises(ImageFeatureUnknown), open_chain([qcow2(packed)]):
        pass
    image = convert(raw, tmp_path / "disk.qcow2")
    with image.open("r+b") as file:
        file.seek(20)
        file.write(b"\0\0\0\x40")
    with pytest.raises(ImageDamaged), open_chain([qcow2(image)]):
        pass
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageNotRecognized), open_chain([qcow2(tmp_path / "fifo")]):
        pass
    (tmp_path / "link").symlink_to(raw)
    with pytest.raises(OSError), open_chain([Layer.of_file(tmp_path / "link", "raw")]):
        pass
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(1024**2))
    with boot_volumes([Layer.of_file(empty, "raw")]) as volumes:
        assert volumes == ()
