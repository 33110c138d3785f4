"""Lines of the host check about programs and firmware: what is installed, and what packages lack.

Each function makes one line; package names are those of Debian and Ubuntu.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from holdfast.host.check_kernel import Account
from holdfast.host.firmware import find_firmware, lacks_2023_certificates
from holdfast.host.kernel_modules import ModuleState, built_with, module_state
from holdfast.host.processes import Completed
from holdfast.host.sub_ids import command_for_range, file_without_range
from holdfast.spec.errors import HoldfastError
from holdfast.spec.host import CheckLine, CheckStatus

QEMU_FLOOR = (7, 2, 0)
QEMU_DEVICES = {
    "virtio-blk-pci": "disks",
    "virtio-net-pci": "network cards",
    "virtio-rng-pci": "random numbers",
    "virtio-serial-pci": "the guest agent",
    "tpm-crb": "the vTPM",
    "nvme": "NVMe disks",
    "virtio-scsi-pci": "SCSI disks",
    "VGA": "the screen",
}
IMAGE_TOOLS = {
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mcopy": "mtools",
    "mkfs.ext4": "e2fsprogs",
    "sfdisk": "fdisk",
    "xorriso": "xorriso",
}
IMAGE_TOOLS_AS_USER = {**IMAGE_TOOLS, "newuidmap": "uidmap", "fakeroot": "fakeroot"}
_FOLDERS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
_CAP_NET_ADMIN = 12  # capabilities(7)


class QemuFacts(Protocol):
    """What the QEMU found can do; asked of its binary by the room that drives it."""

    @property
    def version(self) -> tuple[int, int, int]: ...
    def has_device(self, name: str) -> bool: ...


class Runner(Protocol):
    """Runs a short tool; `Processes` does."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        owner: str,
        timeout: float | None = None,  # noqa: ASYNC109  (the tool's limit, as Processes has it)
    ) -> Completed: ...


def find_program(root: Path, name: str) -> str | None:
    """Path of a program. The system's sbin folders count, also where an ordinary user's PATH lacks them."""
    folders = [str(root / folder) for folder in _FOLDERS]
    if root == Path("/"):
        folders = [*os.get_exec_path(), *folders]
    return shutil.which(name, path=os.pathsep.join(folders))


def check_qemu(facts: QemuFacts | HoldfastError) -> CheckLine:
    """QEMU's version against the floor, and the devices that VMs are built from."""

    def line(status: CheckStatus, text: str, cure: str = "") -> CheckLine:
        return CheckLine(id="qemu", title="QEMU", status=status, text=text, cure=cure)

    if isinstance(facts, HoldfastError):
        return line(CheckStatus.MISSING, facts.message, facts.cure or "Install qemu-system-x86.")
    version = ".".join(map(str, facts.version))
    if facts.version < QEMU_FLOOR:
        floor = ".".join(map(str, QEMU_FLOOR))
        return line(
            CheckStatus.MISSING,
            f"version {version} is older than {floor}",
            "Install a newer qemu-system-x86, for example from the distribution's backports.",
        )
    lacking = {name: use for name, use in QEMU_DEVICES.items() if not facts.has_device(name)}
    if lacking:
        listed = ", ".join(f"{name} ({use})" for name, use in lacking.items())
        return line(
            CheckStatus.LIMITED,
            f"version {version} without {listed}",
            "Install the distribution's full QEMU (qemu-system-x86) in place of this reduced one.",
        )
    return line(CheckStatus.OK, f"version {version} with every device that VMs need")


def check_firmware(root: Path) -> CheckLine:
    """OVMF builds by QEMU's firmware descriptors."""

    def line(status: CheckStatus, text: str, cure: str = "") -> CheckLine:
        return CheckLine(id="firmware", title="UEFI firmware", status=status, text=text, cure=cure)

    builds = find_firmware(root)
    secure = [build for build in builds if build.secure_boot]
    names = ", ".join(str(build.code) for build in (secure or builds))
    if not builds:
        return line(CheckStatus.MISSING, "no UEFI firmware for x86_64 was found", "Install the package ovmf.")
    if not secure:
        return line(
            CheckStatus.LIMITED,
            f"no build with Secure Boot among {names}",
            "Install the package ovmf (its OVMF_CODE_4M.secboot.fd has Secure Boot).",
        )
    enrolled = [build for build in secure if build.enrolled_keys]
    text = f"with Secure Boot: {names}"
    if enrolled and all(lacks_2023_certificates(build) for build in enrolled):
        text += "; the templates with keys lack Microsoft's certificates of 2023"
    return line(CheckStatus.OK, text)


async def check_swtpm(root: Path, runner: Runner) -> CheckLine:
    """swtpm by what it prints of itself (swtpm(8), --print-capabilities)."""

    def line(status: CheckStatus, text: str, cure: str = "") -> CheckLine:
        return CheckLine(id="swtpm", title="vTPM", status=status, text=text, cure=cure)

    program = find_program(root, "swtpm")
    if program is None:
        return line(CheckStatus.MISSING, "swtpm is not installed", "Install the packages swtpm, swtpm-tools.")
    done = await runner.run([program, "socket", "--print-capabilities"], owner="host", timeout=10)
    try:
        told = json.loads(done.stdout)
        version, features = str(told.get("version", "of unknown version")), set(told["features"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return line(
            CheckStatus.MISSING,
            f"{program} does not tell its capabilities (exit code {done.returncode})",
            "Install swtpm 0.7 or newer.",
        )
    if "tpm-2.0" not in features:
        return line(CheckStatus.MISSING, f"swtpm {version} has no TPM 2.0", "Install swtpm 0.7 or newer.")
    if find_program(root, "swtpm_setup") is None:
        return line(
            CheckStatus.LIMITED,
            f"swtpm {version}, but not swtpm_setup: no endorsement key certificates",
            "Install the package swtpm-tools.",
        )
    lacking = [name for name in ("cmdarg-seccomp", "cmdarg-key-fd") if name not in features]
    if lacking:
        return line(
            CheckStatus.LIMITED,
            f"swtpm {version} without {', '.join(lacking)}",
            "Install swtpm 0.7 or newer.",
        )
    return line(CheckStatus.OK, f"swtpm {version} with TPM 2.0 and seccomp")


def check_image_tools(root: Path, account: Account) -> CheckLine:
    """Programs for images and seed discs; whoever is not root builds images in a user namespace."""
    tools = IMAGE_TOOLS if account.uid == 0 else IMAGE_TOOLS_AS_USER
    lacking = {name: package for name, package in tools.items() if not find_program(root, name)}
    ranges = file_without_range(root, account.name, account.uid) if account.uid else None
    texts, cures = [], []
    if lacking:
        texts.append(f"not installed: {', '.join(lacking)}")
        cures.append(f"Install {', '.join(sorted(set(lacking.values())))}.")
    if ranges:
        texts.append(f"{account.name} has no range of ids in {ranges}, so it cannot build images")
        cures.append(f"As root: {command_for_range(account.name)}")
    # Without qemu-img no image can be looked at; the others only serve building one's own and seeds.
    status = CheckStatus.LIMITED if texts else CheckStatus.OK
    return CheckLine(
        id="image-tools",
        title="Image tools",
        status=CheckStatus.MISSING if "qemu-img" in lacking else status,
        text="; ".join(texts) or f"{', '.join(tools)} are installed",
        cure=" ".join(cures),
    )


def check_network(root: Path) -> CheckLine:
    """Bridged switches need a privilege, a device, a kernel and two programs; else user mode serves."""
    faults = []
    if not _may_change_network(root):
        faults.append(("no privilege to make bridges (CAP_NET_ADMIN)", "run the daemon as root"))
    if not (root / "dev/net/tun").exists():
        faults.append(("/dev/net/tun is missing", "load the module tun"))
    if module_state(root, "bridge") is ModuleState.ABSENT:
        faults.append(("the kernel has no bridge module", "use the distribution's full kernel"))
    elif _filters_vlans(root) is False:
        faults.append(
            (
                "the kernel's bridge has no VLAN filtering, so NICs cannot have a VLAN",
                "use a kernel with CONFIG_BRIDGE_VLAN_FILTERING or a switch for each network",
            )
        )
    for name, package in (("nft", "nftables"), ("dnsmasq", "dnsmasq-base")):
        if not find_program(root, name):
            faults.append((f"{name} is not installed", f"install {package}"))
    if not faults:
        return CheckLine(
            id="network",
            title="Network",
            status=CheckStatus.OK,
            text="bridges with VLANs, DHCP, DNS and NAT; user-mode network by QEMU itself",
        )
    return CheckLine(
        id="network",
        title="Network",
        status=CheckStatus.LIMITED,
        text="; ".join([*(fault for fault, _ in faults), "user-mode network by QEMU itself works"]),
        cure="To have it all: " + ", ".join(cure for _, cure in faults) + ".",
    )


def _filters_vlans(root: Path) -> bool | None:
    """By any bridge that there is (its folder in /sys shows it), else by the kernel's settings."""
    for bridge in (root / "sys/class/net").glob("*/bridge"):
        return (bridge / "vlan_filtering").exists()
    return built_with(root, "CONFIG_BRIDGE_VLAN_FILTERING")


def _may_change_network(root: Path) -> bool:
    try:
        status = (root / "proc/self/status").read_text(errors="replace")
        mask = int(status.split("CapEff:", 1)[1].split()[0], 16)
    except (OSError, IndexError, ValueError):
        return False
    return bool(mask >> _CAP_NET_ADMIN & 1)
