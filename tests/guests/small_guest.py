"""A guest that boots in seconds under emulation: Debian's cloud kernel and a busybox initrd of ours.

Kernel, modules and qemu-ga come from the packages of the distribution that the tests run on, by
`apt-get download` and `dpkg -x`: no root is needed, and nothing is installed. The result is kept
in the cache folder under a name that changes with this file and the packages.

In the guest: virtio network by DHCP on every interface, disks as /dev/vda.., /dev/sda..,
/dev/nvme0n1.., CDs as /dev/sr0.., qemu-ga on its virtio-serial port,
acpid for the power button, a shell on ttyS0. It prints READY when it is up.
"""

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

READY = "HOLDFAST-GUEST-READY"

_MODULES = (
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_blk",
    "virtio_console",
    "button",
    "evdev",
    "scsi_common",
    "scsi_mod",
    "sd_mod",
    "virtio_scsi",
    "cdrom",
    "sr_mod",
    "isofs",
    "pvpanic",
    "pvpanic_pci",
)
_FILE_SYSTEM = ("crc16", "mbcache", "jbd2", "crc32c_generic", "libcrc32c", "ext4")
"""Loaded by tests that need one, which makes the others' guests start no later."""
LOAD_EXT4 = f"for module in {' '.join(_FILE_SYSTEM)}; do insmod /modules/$module.ko 2>/dev/null; done; true"

_INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /var /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts; mount -t devpts devpts /dev/pts; mount -t tmpfs tmp /tmp
exec </dev/console >/dev/console 2>&1
ln -sf /run /var/run; hostname small
for pass in 1 2 3; do  # some need others that come later
    for module in {" ".join(_MODULES)}; do insmod /modules/$module.ko 2>/dev/null; done
done
ip link set lo up
for link in /sys/class/net/eth*; do
    [ -e "$link" ] || continue
    name=$(basename $link); ip link set $name up
    udhcpc -i $name -b -q -t 20 -T 1 -s /etc/udhcpc.script >/dev/null 2>&1 &
done
for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
    /usr/sbin/qemu-ga -d -m virtio-serial -p /dev/$(basename $port) -t /run -f /run/qga.pid
done
acpid -c /etc/acpi >/dev/null 2>&1
echo {READY}
while :; do setsid cttyhack sh; done
"""

_UDHCPC = """#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
for each in $dns; do echo "nameserver $each"; done >/etc/resolv.conf  # before the address is seen
ip addr flush dev $interface
ip addr add $ip/${mask:-24} dev $interface
[ -n "$router" ] && ip route replace default via ${router%% *} dev $interface
"""

_OFF = "#!/bin/sh\nsync\nexec /bin/busybox poweroff -f\n"


@dataclass(frozen=True)
class SmallGuest:
    kernel: Path
    initrd: Path
    append: str = "console=ttyS0 quiet panic=-1 random.trust_cpu=on tsc=unstable"


def small_guest() -> SmallGuest:
    """The guest's files, made if they are not in the cache."""
    kernel_package = _kernel_package()
    mark = hashlib.sha256((Path(__file__).read_text() + kernel_package).encode()).hexdigest()[:12]
    folder = cache() / f"small-{mark}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            _make(Path(scratch), kernel_package)
            with contextlib.suppress(OSError):  # somebody beside us was first
                (Path(scratch) / "done").rename(folder)
    return SmallGuest(folder / "vmlinuz", folder / "initrd")


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "holdfast-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _kernel_package() -> str:
    said = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"Depends: (linux-image-\S+)", said)
    assert found, "apt knows no linux-image-cloud-amd64: run apt-get update"
    return found[1]


def _make(scratch: Path, kernel_package: str) -> None:
    packages = [kernel_package, "qemu-guest-agent"]
    subprocess.run(["apt-get", "download", *packages], cwd=scratch, check=True, capture_output=True)
    for package in scratch.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, scratch / "root"], check=True)
    done, tree = scratch / "done", scratch / "tree"
    done.mkdir()
    shutil.copy(next((scratch / "root/boot").glob("vmlinuz-*")), done / "vmlinuz")
    _fill(scratch / "root", tree)
    names = b"\n".join(sorted(os.fsencode(path.relative_to(tree)) for path in tree.rglob("*")))
    for path in [tree, *tree.rglob("*")]:
        os.utime(path, (0, 0), follow_symlinks=False)
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet", "--reproducible", "--owner=0:0"],
        input=names,
        stdout=subprocess.PIPE,
        cwd=tree,
        check=True,
    ).stdout
    # While the kernel unpacks it, it lies in memory twice: small guests have little.
    (done / "initrd").write_bytes(gzip.compress(archive, mtime=0))


def _fill(root: Path, tree: Path) -> None:
    for folder in ("bin", "modules", "etc/acpi/PWRF", "usr/sbin", "sbin", "usr/bin"):
        (tree / folder).mkdir(parents=True)
    _program(Path(shutil.which("busybox") or "/bin/busybox"), tree / "bin/busybox", tree)
    _program(next(root.glob("usr/sbin/qemu-ga")), tree / "usr/sbin/qemu-ga", tree)
    for found in [
        *root.glob("lib/modules/*/kernel/**/*.ko*"),
        *root.glob("usr/lib/modules/*/kernel/**/*.ko*"),
    ]:
        name = found.name.split(".")[0].replace("-", "_")
        if name in _MODULES + _FILE_SYSTEM:
            _module(found, tree / "modules" / f"{name}.ko")
    for name, text in (
        ("init", _INIT),
        ("etc/udhcpc.script", _UDHCPC),
        ("sbin/shutdown", _OFF),
        ("etc/acpi/PWRF/00000080", _OFF),
    ):
        (tree / name).write_text(text)
        (tree / name).chmod(0o755)


def _module(source: Path, target: Path) -> None:
    """Debian 13 compresses its modules."""
    if source.suffix == ".xz":
        with target.open("wb") as file:
            subprocess.run(["xz", "-dc", source], stdout=file, check=True)
    else:
        shutil.copy(source, target)


def _program(source: Path, target: Path, tree: Path) -> None:
    """A program with the libraries that it loads."""
    shutil.copy(source, target)
    target.chmod(0o755)
    said = subprocess.run(["ldd", source], capture_output=True, text=True, check=False).stdout
    for path in re.findall(r"(/\S+) \(0x", said):
        library = tree / path.lstrip("/")
        library.parent.mkdir(parents=True, exist_ok=True)
        if not library.exists():
            shutil.copy(Path(path).resolve(), library)
