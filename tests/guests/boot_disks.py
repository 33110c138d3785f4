"""Disks with a boot chain on them, made from the distribution's packages: for tests that start no guest,
or whose guest is to be refused.

`apt-get download` and `dpkg -x` bring shim, GRUB and systemd-boot; sfdisk and mtools make the disk.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

_PACKAGES = ("shim-signed", "grub-efi-amd64-signed", "systemd-boot-efi")
_FILES = {
    "shim": "usr/lib/shim/shimx64.efi.signed",
    "grub": "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
    "unsigned": "usr/lib/systemd/boot/efi/systemd-bootx64.efi",
}


def boot_programs() -> dict[str, Path]:
    """`shim` (signed by Microsoft), `grub` (by Debian) and one that is `unsigned`; kept in the cache."""
    mark = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast-tests"
    folder = cache / f"boot-programs-{mark}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as made:
            scratch = Path(made)
            subprocess.run(["apt-get", "download", *_PACKAGES], cwd=scratch, check=True, capture_output=True)
            for package in scratch.glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, scratch / "root"], check=True)
            (scratch / "done").mkdir()
            for name, path in _FILES.items():
                shutil.copy(scratch / "root" / path, scratch / "done" / name)
            if not folder.exists():
                (scratch / "done").rename(folder)
    return {name: folder / name for name in _FILES}


def boot_disk(target: Path, files: Mapping[str, Path], mib: int = 16, fat: tuple[str, ...] = ()) -> Path:
    """A raw disk whose one partition, an EFI system partition, holds `files` by their paths in it.

    `fat`: options of mformat, such as `-F` for FAT32.
    """
    esp = target.with_suffix(".esp")
    esp.unlink(missing_ok=True)
    with esp.open("wb") as file:
        file.truncate(mib * 1024**2)
    subprocess.run(["mformat", "-i", esp, *fat, "-v", "ESP", "::"], check=True)
    made = set()
    for path, source in files.items():
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder.lower() not in made:
                subprocess.run(["mmd", "-i", esp, f"::/{folder}"], check=True)
                made.add(folder.lower())
        subprocess.run(["mcopy", "-i", esp, source, f"::/{path.strip('/')}"], check=True)
    with target.open("wb") as file:
        file.truncate((mib + 2) * 1024**2)
    table = f"label: gpt\nstart=2048, size={mib * 2048}, type=uefi\n"
    subprocess.run(["sfdisk", "-q", target], input=table, text=True, check=True)
    subprocess.run(
        ["dd", f"if={esp}", f"of={target}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"],
        check=True,
    )
    esp.unlink()
    return target
