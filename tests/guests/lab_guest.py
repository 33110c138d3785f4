"""A lab: a guest with the distribution's whole kernel in which tests of this tree run.

What the kernel of the host lacks (here: NFS) is there. Debian's minimal system with Python and QEMU's
tools is built once by mmdebstrap and kept in the cache; this tree and the packages of its environment
come on a second disk, made anew each time. It starts a kernel directly and has no systemd: /lab-init
brings up network and agent, and does nothing more.
"""

import hashlib
import platform
import shutil
import site
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from live_host import LiveHost
from small_guest import cache

_TREE = Path(__file__).parents[2]
_KERNEL = "linux-image-cloud-amd64,initramfs-tools,zstd,kmod,iproute2"
_PROGRAMS = "qemu-guest-agent,python3,qemu-utils,nfs-common"
_NOT_NEEDED = ("mypy*", "*mypyc*", "pip*", "setuptools*", "ruff*", "psycopg*", "grimp*", "hypothesis*")
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -o remount,rw /
modprobe -a virtio_net virtio_console nfsv4
ip link set lo up
for link in /sys/class/net/e*; do
    ip link set ${link##*/} up; ip address add 10.0.2.15/24 dev ${link##*/}
done
mkdir -p /lab; mount -o ro /dev/vdb /lab
for port in /dev/vport*; do qemu-ga -d -m virtio-serial -p $port -t /run -f /run/qga.pid; done
while :; do sleep 1000; done
"""
_APPEND = "console=ttyS0 panic=-1 random.trust_cpu=on tsc=unstable root=/dev/vda rw init=/lab-init"


def with_lab(host: LiveHost) -> None:
    """Give a daemon the lab's images."""
    made = _system()
    host.add_image(made / "vmlinuz", "lab-kernel")
    host.add_image(made / "initrd", "lab-initrd")
    host.add_image(made / "system.qcow2", "lab-system", "disk")
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        host.add_image(_tree(Path(scratch)), "lab-tree", "disk")


def lab_vm(name: str) -> dict[str, object]:
    """The request for a lab on the user-mode network, where the host's 127.0.0.1 is 10.0.2.2."""
    return {
        "name": name,
        "cpus": 1,
        "memory": "768MiB",
        "kernel": {"kernel": "lab-kernel", "initrd": "lab-initrd", "append": _APPEND},
        "disks": [{"image": "lab-system", "size": "2GiB"}, {"image": "lab-tree"}],
        "start": True,
    }


def _system() -> Path:
    mark = hashlib.sha256(f"{_KERNEL} {_PROGRAMS} {_INIT}".encode()).hexdigest()[:12]
    folder = cache() / f"lab-{mark}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            root, done = Path(scratch, "root"), Path(scratch, "done")
            done.mkdir()
            argv = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={_KERNEL},{_PROGRAMS}"]
            suite = platform.freedesktop_os_release()["VERSION_CODENAME"]  # whose Python is the one here
            argv += ['--aptopt=Apt::Install-Recommends "false"', suite, str(root)]
            subprocess.run(argv, check=True, capture_output=True)
            (root / "lab-init").write_text(_INIT)
            (root / "lab-init").chmod(0o755)
            for name, found in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
                shutil.copy(next((root / "boot").glob(found)), done / name)
            _disk(root, done / "system.qcow2", "1G")
            with suppress(OSError):  # somebody beside us was first
                done.rename(folder)
    return folder


def _tree(scratch: Path) -> Path:
    """`/lab/src`, `/lab/tests`, and in `/lab/site` the packages that this Python has."""
    root = scratch / "root"
    for name in ("src", "tests"):
        shutil.copytree(_TREE / name, root / name)
    shutil.copy(_TREE / "pyproject.toml", root)
    packages, chosen = site.getsitepackages()[0], shutil.ignore_patterns(*_NOT_NEEDED)
    shutil.copytree(
        packages, root / "site", ignore=lambda at, names: chosen(at, names) if at == packages else ()
    )
    _disk(root, scratch / "tree.qcow2", "512M")
    return scratch / "tree.qcow2"


def _disk(root: Path, target: Path, size: str) -> None:
    raw = target.with_suffix(".raw")
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", root, raw, size], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, target], check=True, capture_output=True)
    raw.unlink()
