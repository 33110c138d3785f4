"""The mmdebstrap run of a build: its command line, and its output told as progress. Pure.

As root the new system is a folder. An ordinary user cannot own what is in it, so there it comes as
an archive, packed inside the user namespace that mmdebstrap makes (`--mode=unshare`).
"""

import shlex
from collections.abc import Callable
from pathlib import Path

from holdfast.storage.apt_sources import Archives
from holdfast.storage.guest_files import ENABLED, MASKED
from holdfast.storage.recipes import Recipe

BOOT_FOLDERS = ("usr/lib/shim", "usr/lib/grub/x86_64-efi-signed")
"""Folders of the new system that hold the signed boot programs."""

# Left out while building, for time and size; what is installed later has them.
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
_KEPT = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")

_MARKERS = (
    ("I: running apt-get update", 0.03, "fetching package lists"),
    ("I: downloading packages", 0.08, "fetching packages"),
    ("I: extracting archives", 0.2, "unpacking the essential packages"),
    ("I: installing essential packages", 0.25, "installing the essential packages"),
    ("I: installing remaining packages", 0.35, "installing packages"),
    ("I: running --customize-hook", 0.9, "adding settings"),
    ("I: cleaning package lists", 0.95, "cleaning up"),
)
_INSTALLING = (0.35, 0.9)
_EXPECTED_STEPS = 460
"""Packages unpacked and set up in the longest phase; only for the share shown."""


def bootstrap_command(
    recipe: Recipe, archives: Archives, as_root: bool, early: Path, late: Path, boot: Path, output: Path
) -> list[str]:
    """mmdebstrap(1): `early` and `late` are copied into the new system, boot programs out to `boot`.

    Its messages go to the standard output, where progress is read.
    """
    copied = " ".join(f"/{folder}" for folder in BOOT_FOLDERS)
    hooks = [
        f"--essential-hook=sync-in {shlex.quote(str(early))} /",
        f"--customize-hook=sync-in {shlex.quote(str(late))} /",
        f'--customize-hook=chroot "$1" systemctl --quiet enable {" ".join(ENABLED)}',
        f'--customize-hook=chroot "$1" systemctl --quiet mask {" ".join(MASKED)}',
        # Each guest makes its own; the settings of this build are not the guest's.
        '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_*_key* "$1"/var/lib/dbus/machine-id',
        '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap',
        '--customize-hook=ln -sf ../run/systemd/resolve/stub-resolv.conf "$1"/etc/resolv.conf',
        f"--customize-hook=copy-out {copied} {shlex.quote(str(boot))}",
    ]
    return [
        *("sh", "-c", 'exec "$@" 2>&1', "sh", "mmdebstrap", "--verbose"),
        f"--mode={'root' if as_root else 'unshare'}",
        f"--format={'directory' if as_root else 'tar'}",
        *("--variant=minbase", "--architectures=amd64"),
        '--aptopt=Apt::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "3"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
        *(f"--dpkgopt=path-include={pattern}" for pattern in _KEPT),
        f"--include={','.join(recipe.packages)}",
        *hooks,
        *(recipe.suite, str(output)),
        *archives.one_line(),
    ]


class BootstrapProgress:
    """Reads mmdebstrap's messages; tells a share from 0 to 1, never falling, and what is being done."""

    def __init__(self, tell: Callable[[float, str], None]) -> None:
        self._tell = tell
        self._rest = b""
        self._share = 0.0
        self._text = "fetching package lists"
        self._steps = 0

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[-1000:]
        for line in lines:
            self._read(line.decode(errors="replace"))

    def _read(self, line: str) -> None:
        for marker, share, text in _MARKERS:
            if line.startswith(marker):
                self._share, self._text = max(self._share, share), text
                self._tell(self._share, self._text)
                return
        low, high = _INSTALLING
        if low <= self._share < high and line.startswith(("Unpacking ", "Setting up ")):
            self._steps += 1
            self._share = min(low + (high - low) * self._steps / _EXPECTED_STEPS, high - 0.01)
            self._tell(self._share, self._text)
