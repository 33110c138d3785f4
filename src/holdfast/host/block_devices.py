"""Block devices of the host that carry a VM's disk directly: found, checked, opened.

A device is opened exclusively (open(2), O_EXCL), so the kernel itself keeps everybody else out, a
mount as well as a second VM, for as long as any copy of the descriptor is open. Formats of /sys and
/proc: Linux, Documentation/ABI/{stable,testing}/sysfs-block and proc_pid_mountinfo(5).
"""

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from holdfast.spec.errors import Conflict, InvalidInput
from holdfast.spec.units import MIB, format_size

_BLKGETSIZE64 = 0x80081272  # linux/fs.h
_BLKSSZGET = 0x1268
_BLKROGET = 0x125E
_LEAST = MIB  # as of every other disk
_STABLE = ("dev/disk/by-id", "dev/mapper")
"""Folders with names that a device keeps over restarts of the host, the best first."""


class NotABlockDevice(InvalidInput):
    id = "not-a-block-device"


class BlockDeviceInUse(Conflict):
    id = "block-device-in-use"


class BlockDeviceTooSmall(InvalidInput):
    id = "block-device-too-small"


@dataclass(frozen=True)
class BlockDevice:
    path: str
    """One that stays, where the host has one."""
    number: int
    """Of the device (st_rdev); the same under every name."""
    size: int
    """Bytes."""
    shares: frozenset[int]
    """Numbers of the devices with bytes of this one: itself, its partitions, what it is a partition of."""


def look_at(path: str, root: Path = Path("/")) -> BlockDevice:
    """A device that a VM can have, by any of its names. Nothing is opened for writing.

    Raises:
        NotABlockDevice: it is none, or is not there, or is empty or read-only.
        BlockDeviceTooSmall: it has less than 1 MiB.
        BlockDeviceInUse: it, or a part of it, is mounted, or something else is built on it.
    """
    number = _number(path)
    folder = root / "sys/dev/block" / f"{os.major(number)}:{os.minor(number)}"
    parts = [each.parent for each in sorted(folder.glob("*/partition"))]
    for part in (folder, *parts):
        _require_unused(path, part, root)
    fd = open_exclusively(path)
    try:
        size = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
        fixed = _number_from(fd, _BLKROGET)
    finally:
        os.close(fd)
    if fixed:
        raise NotABlockDevice(f"{path} is read-only", value=path, cure="Name another.")
    if size == 0:
        raise NotABlockDevice(f"{path} has no content: its size is 0", value=path, cure="Name another.")
    if size < _LEAST:
        raise BlockDeviceTooSmall(
            f"{path} has {format_size(size)}; a disk has {format_size(_LEAST)} at least",
            value=size,
            cure="Name another.",
        )
    whole = [folder.resolve().parent] if (folder / "partition").exists() else []
    numbers = {_as_number(_told(each)) for each in (*parts, *whole)}
    shares = frozenset({number, *(each for each in numbers if each is not None)})
    return BlockDevice(_stable(path, number, root), number, size, shares)


def number_of(path: str) -> int | None:
    """Number of the device that a path names now; None where it names none."""
    try:
        return _number(path)
    except NotABlockDevice:
        return None


def open_exclusively(path: str) -> int:
    """A descriptor for reading and writing past the page cache, which the caller closes.

    QEMU 9.1 and later take only one that is opened as they would open it themselves (monitor/fds.c).

    Raises:
        NotABlockDevice: it is none, or cannot be opened.
        BlockDeviceInUse: something else has it.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(path, "something on this host uses it") from error
        raise NotABlockDevice(
            f"{path} cannot be opened: {error.strerror}",
            value=path,
            cure="See that the device is there and is not read-only.",
        ) from error
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        os.close(fd)
        raise _no_device(path)
    return fd


def sector_of(fd: int) -> int:
    """Bytes of the smallest piece of a device that can be written: 512, or 4096."""
    return _number_from(fd, _BLKSSZGET)


def _number_from(fd: int, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0])


def _number(path: str) -> int:
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:
        raise NotABlockDevice(
            f"there is no device {path[:200]!r}", value=path[:200], cure="See the host's devices with lsblk."
        ) from error
    if not stat.S_ISBLK(found.st_mode) or not path.startswith("/"):
        raise _no_device(path)
    return found.st_rdev


def _no_device(path: str) -> NotABlockDevice:
    return NotABlockDevice(
        f"{path[:200]!r} is not a block device",
        value=path[:200],
        cure="Name one by its whole path, such as /dev/disk/by-id/nvme-...; see lsblk.",
    )


def _require_unused(path: str, part: Path, root: Path) -> None:
    number, name = _told(part), part.resolve().name
    for line in (root / "proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split()
        if fields[2:3] == [number]:
            raise _in_use(path, f"{name} is mounted on {fields[4]}")
    holders = [each.name for each in (part / "holders").glob("*")]
    if holders:
        raise _in_use(path, f"{holders[0]} is built on {name}")
    for line in (root / "proc/swaps").read_text(errors="replace").splitlines()[1:]:
        if number_of(line.split()[0]) == _as_number(number):
            raise _in_use(path, f"{name} is swap space")


def _told(folder: Path) -> str:
    """`major:minor` of the device that a folder of /sys is of; "" where it has none."""
    try:
        return (folder / "dev").read_text().strip()
    except FileNotFoundError:
        return ""


def _as_number(text: str) -> int | None:
    major, _, minor = text.partition(":")
    return os.makedev(int(major), int(minor)) if minor else None


def _in_use(path: str, why: str) -> BlockDeviceInUse:
    return BlockDeviceInUse(
        f"{path} is in use: {why}", value=path, cure="Free it first, or name another device."
    )


def _stable(path: str, number: int, root: Path) -> str:
    """A name that stays with the device; the real path where it has none."""
    for folder in _STABLE:
        names = sorted((root / folder).glob("*"), key=lambda each: (len(each.name), each.name))
        for name in names:
            if number_of(str(name)) == number:
                return str(name)
    return str(Path(path).resolve())
