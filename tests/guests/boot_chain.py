"""Another boot chain on a VM's disk, put there while the VM is off: signed by the same, or tampered with."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

from holdfast.storage.apt_sources import host_archives
from holdfast.storage.disk_layout import ESP

_PACKAGE = "grub-efi-amd64-signed"
_GRUB = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"


def other_signed_grub() -> bytes | None:
    """Debian 13's GRUB, which Debian signed with the same key; None where the host's archives lack it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast-tests"
    kept = cache / "grub-trixie.efi"
    archives = host_archives("trixie")
    if not kept.exists() and archives.entries:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as made:
            _download(Path(made), archives.deb822())
            (Path(made) / "root" / _GRUB).rename(kept)
    return kept.read_bytes() if kept.exists() else None


def _download(scratch: Path, sources: str) -> None:
    """Package lists of its own, so that the host's are left alone."""
    for folder in ("parts", "lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "parts/other.sources").write_text(sources)
    places = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": scratch / "parts",
        "Dir::State::Lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "APT::Architecture": "amd64",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-q", *(part for name, value in places.items() for part in ("-o", f"{name}={value}"))]
    for command in (["update"], ["download", _PACKAGE]):
        subprocess.run([*apt, *command], cwd=scratch, check=True, capture_output=True)
    (package,) = scratch.glob("*.deb")
    subprocess.run(["dpkg", "-x", package, scratch / "root"], check=True)


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
        deadline = time.monotonic() + 20
        # The kernel lets go of an ended QEMU's files a moment later where io_uring held them.
        while subprocess.run(command, capture_output=True).returncode != 0:
            assert time.monotonic() < deadline, subprocess.run(command, check=True)
            time.sleep(0.1)
