"""Another boot chain on a VM's disk, put there while the VM is off: signed by the same, or tampered with."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from holdfast.storage.disk_layout import ESP

_PACKAGE = "grub-efi-amd64-signed"
_GRUB = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"


def other_signed_grub(than: bytes) -> Path | None:
    """A GRUB that Debian signed, of another version than `than`; None where the archive holds only one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast-tests"
    cache.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run(["apt-cache", "madison", _PACKAGE], check=True, capture_output=True, text=True)
    for version in re.findall(r"^ *\S+ \| (\S+) \|", listed.stdout, re.MULTILINE):
        kept = cache / f"grub-{version}.efi"
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=cache) as made:
                package = f"{_PACKAGE}={version}"
                done = subprocess.run(["apt-get", "download", package], cwd=made, capture_output=True)
                if done.returncode != 0:
                    continue
                (file,) = Path(made).glob("*.deb")
                subprocess.run(["dpkg", "-x", file, Path(made) / "root"], check=True)
                shutil.copy(Path(made) / "root" / _GRUB, Path(made) / "grub")
                (Path(made) / "grub").rename(kept)
        if kept.read_bytes() != than:
            return kept
    return None


class EspOf:
    """The EFI system partition of a disk (qcow2) of our own images, of a VM that is off."""

    def __init__(self, disk: Path, scratch: Path) -> None:
        self._disk = disk
        self._esp = scratch / "esp.img"

    def read(self, path: str) -> bytes:
        self._take()
        command = ["mtype", "-i", self._esp, f"::{path}"]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def replace(self, path: str, content: bytes) -> None:
        self._take()
        command = ["mcopy", "-o", "-i", self._esp, "-", f"::{path}"]
        subprocess.run(command, input=content, check=True)
        write = f"write -s {self._esp} {ESP.start} {ESP.size}"
        command = ["qemu-io", "-f", "qcow2", "-c", write, self._disk]
        subprocess.run(command, check=True, capture_output=True)

    def _take(self) -> None:
        mib = 1024 * 1024
        command = ["qemu-img", "dd", "-f", "qcow2", "-O", "raw", f"if={self._disk}", f"of={self._esp}"]
        command += ["bs=1M", f"skip={ESP.start // mib}", f"count={(ESP.start + ESP.size) // mib}"]
        subprocess.run(command, check=True)
