"""Debian's own installer as a disc with its signed boot chain, made from the distribution's packages.

`apt-get download` and `dpkg -x` bring shim, GRUB and the installer's kernel and initrd; mtools and
xorriso make of them an ISO 9660 image with an EFI El Torito entry. The text comes to ttyS0.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

_PACKAGES = ("debian-installer-12-netboot-amd64", "shim-signed", "grub-efi-amd64-signed")
_TEXT = "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"
_MENU = """set timeout=0
menuentry Install {
    linux /linux console=ttyS0 DEBIAN_FRONTEND=text priority=low ---
    initrd /initrd.gz
}
"""
_BOOT_FILES_KIB = 12 * 1024


def installer_disc(target: Path) -> Path:
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        subprocess.run(["apt-get", "download", *_PACKAGES], cwd=scratch, check=True, capture_output=True)
        for package in scratch.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, scratch / "root"], check=True)
            package.unlink()
        disc = scratch / "disc"
        (disc / "boot/grub").mkdir(parents=True)
        for name in ("linux", "initrd.gz"):
            shutil.move(scratch / "root" / _TEXT / name, disc / name)
        (disc / "boot/grub/grub.cfg").write_text(_MENU)
        _boot_partition(scratch / "root", disc / "efi.img")
        command = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-V", "INSTALLER"]
        command += ["-e", "efi.img", "-no-emul-boot", "-o", str(target), str(disc)]
        subprocess.run(command, check=True)
    return target


def _boot_partition(root: Path, image: Path) -> None:
    """A FAT file system with the first two links of the chain, under the names that firmware looks for."""
    subprocess.run(["mformat", "-i", image, "-C", "-T", str(_BOOT_FILES_KIB * 2), "::"], check=True)
    subprocess.run(["mmd", "-i", image, "::/EFI", "::/EFI/BOOT"], check=True)
    for source, name in (
        ("usr/lib/shim/shimx64.efi.signed", "BOOTX64.EFI"),
        ("usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed", "grubx64.efi"),
    ):
        subprocess.run(["mcopy", "-i", image, root / source, f"::/EFI/BOOT/{name}"], check=True)
