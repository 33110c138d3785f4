"""Block devices in a made /sys and /proc; their numbers are said by the test, their content is a file."""

import os
import struct
from pathlib import Path

import pytest

from holdfast.host import block_devices
from holdfast.host.block_devices import (
    BlockDeviceInUse,
    BlockDeviceTooSmall,
    NotABlockDevice,
    look_at,
    number_of,
    open_exclusively,
)
from holdfast.spec.units import MIB

DISK, FIRST, SECOND, OTHER = (os.makedev(8, number) for number in (0, 1, 2, 16))
NUMBERS = {"sda": DISK, "sda1": FIRST, "sda2": SECOND, "sdb": OTHER, "link": DISK}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("dev/block", "class"):
        (tmp_path / "sys" / name).mkdir(parents=True)
    for name, folder in (("sda", "sda"), ("sda1", "sda/sda1"), ("sda2", "sda/sda2"), ("sdb", "sdb")):
        real = tmp_path / "sys/devices" / folder
        (real / "holders").mkdir(parents=True)
        told = f"{os.major(NUMBERS[name])}:{os.minor(NUMBERS[name])}"
        (real / "dev").write_text(f"{told}\n")
        if "/" in folder:
            (real / "partition").write_text("1\n")
        (tmp_path / "sys/dev/block" / told).symlink_to(real)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("36 1 254:0 / / rw - ext4 /dev/vda rw\n")
    (tmp_path / "proc/swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n")
    (tmp_path / "dev/disk/by-id").mkdir(parents=True)
    (tmp_path / "size").write_text(str(64 * MIB))
    (tmp_path / "fixed").write_text("0")

    def ioctl(_: int, request: int, space: bytes) -> bytes:
        """Numbers of requests: linux/fs.h."""
        form, file = {0x80081272: ("Q", "size"), 0x125E: ("i", "fixed")}[request]
        assert len(space) == struct.calcsize(form)
        return struct.pack(form, int((tmp_path / file).read_text()))

    monkeypatch.setattr(block_devices, "open_exclusively", lambda _: os.open(tmp_path / "size", os.O_RDONLY))
    monkeypatch.setattr(block_devices.fcntl, "ioctl", ioctl)

    def number(path: str) -> int:
        if Path(path).name not in NUMBERS:
            raise NotABlockDevice(f"there is no device {path!r}")
        return NUMBERS[Path(path).name]

    monkeypatch.setattr(block_devices, "_number", number)
    return tmp_path


def test_a_device_is_itself_its_parts_and_what_it_is_a_part_of(root: Path) -> None:
    assert look_at("/dev/sda", root).shares == {DISK, FIRST, SECOND}
    assert look_at("/dev/sda2", root).shares == {DISK, SECOND}
    found = look_at("/dev/sdb", root)
    assert (found.number, found.size, found.shares) == (OTHER, 64 * MIB, {OTHER})


def test_the_name_that_stays_is_kept(root: Path) -> None:
    assert look_at("/dev/sda", root).path == "/dev/sda"
    folder = root / "dev/disk/by-id"
    for name in ("sdb", "link", "dangling"):
        (folder / name).touch()
    assert look_at("/dev/sda", root).path == str(folder / "link")


@pytest.mark.parametrize("path", ["/dev/sda", "/dev/sda1"])
def test_what_is_mounted_or_swap_is_in_use_and_so_is_the_whole(root: Path, path: str) -> None:
    (root / "proc/self/mountinfo").write_text("36 1 8:1 / /srv/my\\040files rw - ext4 /dev/sda1 rw\n")
    with pytest.raises(BlockDeviceInUse, match="sda1 is mounted on /srv/my"):
        look_at(path, root)
    (root / "proc/self/mountinfo").write_text("36 1 8:16 / / rw - ext4 /dev/sdb rw\n37 bad\n\n")
    (root / "proc/swaps").write_text("Filename Type\n/dev/sda1 partition 1 0 -2\n/swap.img file 1 0 -3\n")
    with pytest.raises(BlockDeviceInUse, match="sda1 is swap"):
        look_at(path, root)
    look_at("/dev/sda2", root)


@pytest.mark.parametrize("path", ["/dev/sda", "/dev/sda1"])
def test_what_something_is_built_on_is_in_use(root: Path, path: str) -> None:
    (root / "sys/devices/sda/sda1/holders/dm-0").touch()
    with pytest.raises(BlockDeviceInUse, match="dm-0 is built on sda1"):
        look_at(path, root)
    look_at("/dev/sda2", root)


def test_a_device_that_nothing_fits_on_is_refused(root: Path) -> None:
    (root / "fixed").write_text("1")
    with pytest.raises(NotABlockDevice, match="read-only"):
        look_at("/dev/sdb", root)
    (root / "fixed").write_text("0")
    (root / "size").write_text("0")
    with pytest.raises(NotABlockDevice, match="no content"):
        look_at("/dev/sdb", root)
    (root / "size").write_text(str(MIB - 512))
    with pytest.raises(BlockDeviceTooSmall):
        look_at("/dev/sdb", root)


def test_what_is_no_device_has_no_number_and_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for path in (str(file), str(tmp_path), "/dev/null", "dev/null", "/dev/none", "", "\0", "/" + "x" * 5000):
        assert number_of(path) is None
        with pytest.raises(NotABlockDevice) as caught:
            look_at(path)
        assert len(caught.value.message) < 400 and caught.value.cure
    with pytest.raises(NotABlockDevice):
        open_exclusively(str(file))
    assert file.read_bytes() == b"x"
