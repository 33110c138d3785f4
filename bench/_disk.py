"""The disk of the benchmarks of import and export: a file system with this machine's own files.

Made once and kept beside the daemon's records of `./run`, as raw, as VMDK and as OVA.
"""

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench._figures import say

GIB = 1 << 30
_SOURCES = ("/usr", "/opt", "/var/lib")
_OVF = b'<?xml version="1.0"?>\n<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"/>\n'


def kept() -> Path:
    """The folder of what is made once."""
    folder = Path(__file__).parents[1] / ".run" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def raw_disk(size: int) -> Path:
    """An ext4 file system of `size` bytes and a half more, with that many bytes of real files."""
    path = kept() / f"disk-{size}.raw"
    if path.exists():
        return path
    say(f"making a disk of {size / GIB:g} GiB of this machine's files, once")
    with tempfile.TemporaryDirectory(dir=kept()) as work:
        tree, part = Path(work) / "tree", Path(work) / "part"
        _fill(tree, size)
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(part), str(size * 3 // 2048)],
            check=True,
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        )
        part.rename(path)
    return path


def vmdk_disk(size: int) -> Path:
    """That disk as a streamOptimized VMDK, made by qemu-img."""
    path = kept() / f"disk-{size}.vmdk"
    if not path.exists():
        raw = raw_disk(size)
        say("making a streamOptimized VMDK of it, once")
        part = path.with_suffix(".part")
        options = ["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
        subprocess.run(["qemu-img", "convert", *options, str(raw), str(part)], check=True)
        part.rename(path)
    return path


def ova_disk(size: int) -> tuple[Path, int]:
    """The VMDK in an archive behind a descriptor, and the byte at which it begins there."""
    path, disk = kept() / f"disk-{size}.ova", vmdk_disk(size)
    if not path.exists():
        say("making an OVA of it, once")
        part = path.with_suffix(".part")
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive:
            head = tarfile.TarInfo("disk.ovf")
            head.size = len(_OVF)
            archive.addfile(head, io.BytesIO(_OVF))
            archive.add(disk, "disk.vmdk")
        part.rename(path)
    with tarfile.open(path) as archive:
        return path, archive.getmember("disk.vmdk").offset_data


def sync(path: Path) -> None:
    """Wait until a file is on the disk, as both sides of every comparison do."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fill(tree: Path, size: int) -> None:
    had = 0
    for source in _files():
        length = source.lstat().st_size
        if had + length > size * 1.01:
            continue
        target = tree / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, target)
        except OSError:
            continue
        had += length
        if had >= size:
            return
    raise SystemExit(f"this machine has only {had} bytes of files to make a disk of")


def _files() -> Iterator[Path]:
    for source in _SOURCES:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder) / name
                if path.is_file() and not path.is_symlink():
                    yield path
