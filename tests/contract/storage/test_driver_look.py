"""ext2 to ext4 and XFS as their own programs make them, initial RAM disks packed by the real ones."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loop_files import LoopFile
from storage_rooms import Rooms

from holdfast.storage.appliances.boot_look import BootLooker
from holdfast.storage.appliances.driver_look import DriverLook, Drivers
from holdfast.storage.appliances.source import HeldFile
from holdfast.storage.formats.ext4 import Ext4
from holdfast.storage.formats.runs import NotReadable
from holdfast.storage.formats.xfs import Xfs

MIB = 1 << 20
MAKE = {
    "ext4": ("ext4",),
    "ext3": ("ext3",),
    "ext2": ("ext2",),
    "ext4 with maps": ("ext4", "-O", "^64bit,^extents"),
    "ext4 with blocks of 1 KiB": ("ext4", "-b", "1024"),
    "ext4 with small inodes": ("ext4", "-I", "128", "-b", "2048"),
}
BLOCK, PCI = (f"kernel/drivers/{name}.ko" for name in ("block/virtio_blk", "virtio/virtio_pci"))
OTHER = "kernel/drivers/scsi/vmw_pvscsi.ko"


XFS = {
    "xfs": (),
    "xfs of version 4": ("-m", "crc=0"),
    "xfs with blocks of 1 KiB": ("-b", "size=1024"),
    "xfs with large inodes": ("-i", "size=2048"),
    "xfs with large folders": ("-n", "size=16384"),
}


@dataclass
class File:
    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length).ljust(length, b"\0")


def made_fs(image: Path, content: Path, kind: str = "ext4", mib: int = 32) -> Path:
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    name, *options = MAKE[kind]
    subprocess.run(
        [f"mkfs.{name}", "-q", "-F", *options, "-d", content, image], check=True, capture_output=True
    )
    return image


def made_xfs(image: Path, content: Path, kind: str = "xfs", mib: int = 320) -> Path:
    """By a list of what it holds, which mkfs.xfs(8) calls a protofile. Smaller ones are not made."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    listed = image.with_suffix(".list")
    listed.write_text("\n".join(["/", "0 0", "d--755 0 0", *_listed(content), "$", ""]))
    subprocess.run(["mkfs.xfs", "-q", *XFS[kind], "-p", listed, image], check=True, capture_output=True)
    return image


def _listed(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            yield f"{path.name} l--777 0 0 {path.readlink()}"
        elif path.is_dir():
            yield from (f"{path.name} d--755 0 0", *_listed(path), "$")
        else:
            yield f"{path.name} ---644 0 0 {path}"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    (root / "boot").mkdir()
    (root / "boot/config-6.1").write_text("CONFIG_VIRTIO_BLK=m\n")
    (root / "large").write_bytes(random.Random(1).randbytes(3 * MIB + 5))
    (root / "many").mkdir()
    for number in range(1500):
        (root / f"many/file-{number}").write_text(str(number))
    with (root / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"end")
    (root / "link").symlink_to("/etc/shadow")
    (root / "empty").touch()
    return root


@pytest.mark.parametrize("kind", MAKE)
def test_files_are_read(tmp_path: Path, content: Path, kind: str) -> None:
    disk = File(made_fs(tmp_path / "fs", content, kind))
    files = Ext4(disk, 0, disk.size)
    assert set(files.names("")) == {"boot", "large", "many", "sparse", "link", "empty", "lost+found"}
    assert len(files.names("many")) == 1500 and files.read("many/file-1499", 9) == b"1499"
    for name in ("large", "sparse", "empty", "boot/config-6.1"):
        assert files.read(name, 8 * MIB) == (content / name).read_bytes()
    for name in ("link", "link/x", "boot", "none", "large/x", ""):
        assert files.read(name, 8 * MIB) is None
    assert files.names("large") == files.names("none") == ()
    with pytest.raises(NotReadable):
        files.read("large", MIB)


@pytest.mark.parametrize("kind", XFS)
def test_files_of_xfs_are_read(tmp_path: Path, content: Path, kind: str) -> None:
    disk = File(made_xfs(tmp_path / "fs", content, kind))
    files = Xfs(disk, 0, disk.size)
    assert set(files.names("")) == {"boot", "large", "many", "sparse", "link", "empty"}
    assert len(files.names("many")) == 1500 and files.read("many/file-1499", 9) == b"1499"
    for name in ("large", "sparse", "empty", "boot/config-6.1"):
        assert files.read(name, 8 * MIB) == (content / name).read_bytes()
    for name in ("link", "link/x", "boot", "none", "large/x", ""):
        assert files.read(name, 8 * MIB) is None
    with pytest.raises(NotReadable):
        files.read("large", MIB)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_files_in_many_pieces_are_read(tmp_path: Path) -> None:
    for kind, reader in (("xfs", Xfs), ("ext4", Ext4)):
        loop = LoopFile.make(tmp_path, kind, 320 * MIB)
        try:
            path = loop.root / "pieces"
            data = random.Random(4).randbytes(8 * MIB)
            with path.open("wb") as file:
                for start in range(0, len(data), 8192):  # every other 4 KiB is a hole
                    file.seek(start)
                    file.write(data[start : start + 4096])
                file.truncate(len(data))
                os.posix_fallocate(file.fileno(), len(data), MIB)  # set aside, never written
            expected = path.read_bytes()
            (loop.root / "names").mkdir()
            for number in range(3000):
                (loop.root / f"names/{'n' * 60}-{number}").touch()
            for number in range(0, 3000, 3):
                (loop.root / f"names/{'n' * 60}-{number}").unlink()
        finally:
            loop.unmount()
        disk = File(loop.file)
        files = reader(disk, 0, disk.size)
        assert files.read("pieces", 16 * MIB) == expected
        assert len(files.runs("pieces", 16 * MIB) or ()) > 1000
        assert len(files.names("names")) == 2000


def archive(modules: tuple[str, ...], version: str = "6.1.0-9-amd64") -> bytes:
    """As initramfs-tools and dracut make them: with lists that name modules which are not in it."""
    made = b""
    listed = f"{BLOCK}\n{PCI}\nkernel/fs/ext4.ko\n".encode()
    names = [f"usr/lib/modules/{version}/{each}" for each in modules]
    for name, data in (
        (f"usr/lib/modules/{version}/modules.order", listed),
        *((name, b"ELF" * 99) for name in names),
    ):
        made += b"070701" + b"".join(
            b"%08X" % number for number in (0, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        )  # fmt: skip
        made += name.encode() + b"\0"
        made += bytes(-len(made) % 4) + data
        made += bytes(-len(made) % 4)
    tail = b"070701" + b"0" * 88 + b"0000000B" + b"0" * 8 + b"TRAILER!!!\0"
    made += tail + bytes(-len(made + tail) % 4)
    return made + bytes(-len(made) % 512)


def packed(data: bytes, program: str) -> bytes:
    return subprocess.run([program, "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


def virtual_size(disk: Path) -> int:
    info = subprocess.run(["qemu-img", "info", "--output=json", disk], check=True, capture_output=True)
    return int(json.loads(info.stdout)["virtual-size"])


async def looked(rooms: Rooms, disk: Path, format: str) -> DriverLook | None:
    folder = rooms.state.root / "look"
    folder.mkdir()
    folder.chmod(0o711)
    looker = BootLooker(rooms.processes, folder, rooms.state.runtime, rooms.identity, "test")
    fd = os.open(disk, os.O_RDONLY)
    try:
        found = await looker.look(HeldFile("x", fd, 0, os.fstat(fd).st_size), format, virtual_size(disk))
        assert list(folder.iterdir()) == [] and found is not None
        return found.drivers
    finally:
        os.close(fd)


def disk_of(folder: Path, files: dict[str, bytes], kind: str = "ext4") -> Path:
    """A qcow2 disk with a partition of these files."""
    root = folder / "root"
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    image = made_xfs(folder / "fs", root) if kind == "xfs" else made_fs(folder / "fs", root, kind)
    raw, disk, size = folder / "raw", folder / "disk", image.stat().st_size
    with raw.open("wb") as file:
        file.truncate(size + 2 * MIB)
    table = f"label: gpt\nstart=2048, size={size // 512}\n"
    subprocess.run(["sfdisk", "-q", raw], input=table, text=True, check=True)
    subprocess.run(
        ["dd", f"if={image}", f"of={raw}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"],
        check=True,
    )
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, disk], check=True)
    return disk


def streamed(disk: Path, target: Path) -> Path:
    options = ["-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", *options, disk, target], check=True)
    return target


MODULES = b"CONFIG_VIRTIO_BLK=m\nCONFIG_VIRTIO_PCI=y\n"
MICROCODE = archive(("../../firmware/x",))
NOISE = random.Random(2).randbytes(2 * MIB)  # so that it takes more than one part of the disk
WITH = archive((BLOCK, PCI, OTHER)) + NOISE
WITHOUT = archive((OTHER,)) + NOISE
NAME = "boot/initrd.img-6.1.0-9-amd64"
CASES: dict[str, tuple[dict[str, bytes], Drivers, str]] = {
    "zstd": ({NAME: MICROCODE + packed(WITH, "zstd")}, Drivers.PRESENT, "initrd.img"),
    "gzip": ({NAME: packed(WITH, "gzip")}, Drivers.PRESENT, "initrd.img"),
    "xz, without": ({NAME: MICROCODE + packed(WITHOUT, "xz")}, Drivers.MISSING, "virtio_blk, virtio_pci"),
    "not packed": ({NAME: archive((BLOCK + ".xz", PCI + ".xz"))}, Drivers.PRESENT, "initrd.img"),
    "modules before what is packed": (
        {NAME: archive((BLOCK, PCI)) + packed(WITHOUT, "zstd")}, Drivers.PRESENT, "initrd.img"
    ),
    "in several pieces, with holes": (
        {NAME: MICROCODE + bytes(MIB) + MICROCODE + bytes(2 * MIB) + packed(WITH, "gzip")},
        Drivers.PRESENT,
        "initrd.img",
    ),
    "the newest counts": (
        {
            "boot/initrd.img-6.9.0": packed(WITH, "gzip"),
            "boot/initrd.img-6.10.0": packed(WITHOUT, "gzip"),
            "boot/initrd.img-6.11.0.bak": packed(WITH, "gzip"),
        },
        Drivers.MISSING,
        "6.10.0",
    ),
    "of another family, beside a rescue image": (
        {
            "initramfs-5.14.0.el9.img": packed(WITHOUT, "gzip"),
            "initramfs-0-rescue-1234.img": packed(WITH, "gzip"),
        },
        Drivers.MISSING,
        "el9",
    ),
    "built in": (
        {"boot/config-6.1.0-9-amd64": MODULES.replace(b"m", b"y"), NAME: packed(WITHOUT, "gzip")},
        Drivers.PRESENT,
        "kernel '6.1",
    ),
    "one built in, the other not there": (
        {"boot/config-6.1.0-9-amd64": MODULES, NAME: packed(WITHOUT, "gzip")},
        Drivers.MISSING,
        "no driver virtio_blk",
    ),
    "packed in an unknown way": ({NAME: MICROCODE + b"BZh9" + NOISE}, Drivers.UNKNOWN, "not compressed"),
    "cut off": ({NAME: packed(WITHOUT, "gzip")[:-MIB]}, Drivers.UNKNOWN, "cannot be read"),
    "no kernel": ({"etc/passwd": b""}, Drivers.UNKNOWN, "no file system"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_drivers_are_found_in_the_initial_ram_disk(rooms: Rooms, tmp_path: Path, case: str) -> None:
    files, drivers, words = CASES[case]
    found = await looked(rooms, disk_of(tmp_path, files), "qcow2")
    assert found is not None and found.drivers is drivers and words in found.text, found


@pytest.mark.parametrize("kind", ["ext2", "xfs"])
async def test_they_are_found_on_a_boot_partition_in_a_vmdk(rooms: Rooms, tmp_path: Path, kind: str) -> None:
    disk = disk_of(tmp_path, {"initrd.img-6.1.0-9-amd64": packed(WITH, "zstd")}, kind)
    stream = streamed(disk, tmp_path / "stream")
    found = await looked(rooms, stream, "vmdk")
    assert found is not None and found.drivers is Drivers.PRESENT


async def test_a_disk_without_partitions_or_of_another_file_system_is_unknown(
    rooms: Rooms, tmp_path: Path
) -> None:
    blank = tmp_path / "blank"
    with blank.open("wb") as file:
        file.truncate(8 * MIB)
    found = await looked(rooms, blank, "raw")
    assert found is not None and found.drivers is Drivers.UNKNOWN
