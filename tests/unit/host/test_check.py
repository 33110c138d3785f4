"""Each line of the host check: ok, limited or missing, and a cure wherever it is not ok."""

import asyncio
import gzip
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_host import hybrid_host, program, put

from holdfast.host import check_kernel, check_programs
from holdfast.host.check import CheckedHost, check
from holdfast.host.check_kernel import Account
from holdfast.host.check_keys import check_host_key
from holdfast.host.clock import clock_synchronised
from holdfast.host.kernel_modules import ModuleState, built_with, module_state
from holdfast.host.processes import Completed, ProgramMissing
from holdfast.spec.firmware_state import HostKeyFacts, HostKeyKind
from holdfast.spec.host import AccelerationVerdict, CheckLine, CheckStatus
from holdfast.spec.vm import Acceleration

ROOT_USER = Account(0, "root", frozenset({"root"}))
KVM = AccelerationVerdict(
    acceleration=Acceleration.KVM, reason="it ran", probe="linux", key="k", cpu_model="host"
)
TCG = AccelerationVerdict(acceleration=Acceleration.TCG, reason="it hung", probe="linux", key="k")
SWTPM = b'{"type":"swtpm","features":["tpm-2.0","cmdarg-seccomp","cmdarg-key-fd"],"version":"0.7.1"}'


class Qemu:
    def __init__(self, version: tuple[int, int, int] = (10, 0, 2), lacking: Sequence[str] = ()) -> None:
        self.version = version
        self._lacking = lacking

    def has_device(self, name: str) -> bool:
        return name not in self._lacking


class Tools:
    def __init__(self, stdout: bytes = SWTPM) -> None:
        self._stdout = stdout

    async def run(
        self,
        argv: Sequence[str],
        *,
        owner: str,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Completed:
        assert Path(argv[0]).name == "swtpm" and owner == "host" and timeout
        return Completed(0, self._stdout, b"")


def full_host(root: Path) -> Path:
    """The hybrid host with everything installed, loaded and delegated."""
    hybrid_host(root)
    for name in ("swtpm", "swtpm_setup", "qemu-img", "mmdebstrap", "mcopy", "xorriso"):
        program(root, f"usr/bin/{name}")
    for name in ("mkfs.ext4", "sfdisk", "nft", "dnsmasq"):
        program(root, f"usr/sbin/{name}")
    for name in ("bridge", "nvme_tcp"):
        (root / "sys/module" / name).mkdir(parents=True)
    group = "sys/fs/cgroup/system.slice/holdfast.service"
    put(
        root,
        {
            "dev/kvm": "",
            "dev/net/tun": "",
            "proc/self/status": "Name:\tholdfast\nCapEff:\t000001ffffffffff\n",
            "proc/self/mountinfo": "30 25 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n",
            "proc/self/cgroup": "0::/system.slice/holdfast.service\n",
            f"{group}/cgroup.controllers": "cpu memory\n",
            f"{group}/cgroup.procs": "",
            f"{group}/cgroup.subtree_control": "",
            "lib/modules/6.12.0-amd64/modules.dep": "kernel/nvme/host/nvme-rdma.ko.xz: kernel/a.ko.xz\n",
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "512\n",
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "500\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
            "usr/share/OVMF/code.fd": "c",
            "usr/share/OVMF/vars.fd": "v",
            "usr/share/qemu/firmware/50.json": (
                '{"description": "x", "interface-types": ["uefi"], "features": ["secure-boot"],'
                '"targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],'
                '"mapping": {"device": "flash",'
                '"executable": {"filename": "/usr/share/OVMF/code.fd", "format": "raw"},'
                '"nvram-template": {"filename": "/usr/share/OVMF/vars.fd", "format": "raw"}}}'
            ),
        },
    )
    return root


def bare_host(root: Path) -> Path:
    put(
        root,
        {"proc/meminfo": "MemTotal: 1048576 kB\nMemAvailable: 1024 kB\n", "proc/cpuinfo": "flags : fpu\n"},
    )
    return root


async def lines_of(
    root: Path, verdict: AccelerationVerdict, qemu: Qemu | None, **changes: Any
) -> list[CheckLine]:
    async def acceleration() -> AccelerationVerdict:
        return verdict

    async def facts() -> Qemu:
        if qemu is None:
            raise ProgramMissing("the program qemu-system-x86_64 is not installed", cure="Install it.")
        return qemu

    async def key() -> HostKeyFacts:
        # A host without QEMU stands for one without anything.
        return HostKeyFacts(kind=HostKeyKind.TPM if qemu else HostKeyKind.FILE, tpm=qemu is not None)

    host = CheckedHost(
        runner=Tools(),
        state=root,
        acceleration=acceleration,
        qemu=facts,
        host_key=key,
        root=root,
        account=ROOT_USER,
        clock=lambda: True,
    )
    return await check(replace(host, **changes))


async def test_a_full_host_is_ok_in_every_line(tmp_path: Path) -> None:
    lines = await lines_of(full_host(tmp_path), KVM, Qemu())
    # The disk that the tests happen to run on may be nearly full.
    assert [line for line in lines if line.status is not CheckStatus.OK and line.id != "space"] == []
    assert len({line.id for line in lines}) == len(lines) == 15
    assert lines[0].id == "acceleration"


async def test_a_bare_host_has_a_cure_for_every_fault(tmp_path: Path) -> None:
    account = Account(1000, "eve", frozenset({"eve"}))
    lines = await lines_of(bare_host(tmp_path), TCG, None, account=account, clock=lambda: False)
    assert {line.id for line in lines if line.status is CheckStatus.OK} <= {"space"}
    assert {line.id for line in lines if line.status is CheckStatus.MISSING} - {"space"} == {
        "qemu",
        "firmware",
        "swtpm",
        "image-tools",
        "nvme-of",
    }
    assert all(line.text and (line.cure or line.status is CheckStatus.OK) for line in lines)


@pytest.mark.parametrize(
    ("kind", "tpm", "problem", "status", "text", "cure"),
    [
        (HostKeyKind.TPM, True, "", CheckStatus.OK, "stolen or copied disk does not open it", ""),
        (None, True, "", CheckStatus.OK, "none yet", ""),
        (HostKeyKind.FILE, True, "", CheckStatus.LIMITED, "has a TPM", "rotate-host-key --to tpm"),
        (HostKeyKind.FILE, False, "", CheckStatus.LIMITED, "root alone may read", "encrypted disk"),
        (None, False, "", CheckStatus.LIMITED, "none yet", "encrypted disk"),
        (HostKeyKind.TPM, True, "PCR 7 differs", CheckStatus.MISSING, "PCR 7 differs", "Boot as before."),
    ],
)
def test_what_keeps_the_host_key_is_said_with_the_difference(
    kind: HostKeyKind | None, tpm: bool, problem: str, status: CheckStatus, text: str, cure: str
) -> None:
    facts = HostKeyFacts(kind=kind, tpm=tpm, problem=problem, cure="Boot as before." if problem else "")
    line = check_host_key(facts)
    assert line.status is status and text in line.text and cure in line.cure
    assert bool(line.cure) == (status is not CheckStatus.OK)


async def test_one_broken_line_leaves_the_others_alone(tmp_path: Path) -> None:
    root = full_host(tmp_path)
    put(root, {"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "many\n"})

    async def broken() -> AccelerationVerdict:
        raise OSError("the kernel is silent")

    lines = {line.id: line for line in await lines_of(root, KVM, Qemu(), acceleration=broken)}
    assert lines["acceleration"].status is lines["huge-pages"].status is CheckStatus.LIMITED
    assert "the kernel is silent" in lines["acceleration"].text
    assert lines["qemu"].status is CheckStatus.OK and len(lines) == 15


async def test_a_line_that_takes_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.host.check._PROBE_PATIENCE", 0.05)

    async def endless() -> AccelerationVerdict:
        await asyncio.Event().wait()
        return KVM

    lines = await lines_of(full_host(tmp_path), KVM, Qemu(), acceleration=endless)
    assert "within 0.05 s" in lines[0].text


@pytest.mark.parametrize(
    ("qemu", "status", "word"),
    [
        (Qemu((7, 2, 0)), CheckStatus.OK, "7.2.0"),
        (Qemu((7, 1, 9)), CheckStatus.MISSING, "older than 7.2.0"),
        (Qemu(lacking=["tpm-crb"]), CheckStatus.LIMITED, "tpm-crb (the vTPM)"),
    ],
)
def test_qemu(qemu: Qemu, status: CheckStatus, word: str) -> None:
    line = check_programs.check_qemu(qemu)
    assert line.status is status and word in line.text


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (SWTPM, CheckStatus.OK),
        (b'{"features":["tpm-1.2"],"version":"0.7"}', CheckStatus.MISSING),
        (b'{"features":["tpm-2.0"],"version":"0.5"}', CheckStatus.LIMITED),
        (b"usage: swtpm", CheckStatus.MISSING),
        (b"[]", CheckStatus.MISSING),
    ],
)
async def test_swtpm(tmp_path: Path, told: bytes, status: CheckStatus) -> None:
    line = await check_programs.check_swtpm(full_host(tmp_path), Tools(told))
    assert line.status is status and bool(line.cure) == (status is not CheckStatus.OK)


def test_tools_name_their_packages(tmp_path: Path) -> None:
    root = full_host(tmp_path)
    for name, package in (("mcopy", "mtools"), ("xorriso", "xorriso")):
        (root / "usr/bin" / name).unlink()
        line = check_programs.check_image_tools(root, ROOT_USER)
        assert (line.status, line.cure) == (CheckStatus.LIMITED, f"Install {package}.")
        program(root, f"usr/bin/{name}")
    (root / "usr/bin/qemu-img").unlink()
    assert check_programs.check_image_tools(root, ROOT_USER).status is CheckStatus.MISSING


def test_an_ordinary_user_needs_more_to_build_images(tmp_path: Path) -> None:
    root, eve = full_host(tmp_path), Account(1000, "eve", frozenset({"eve"}))
    line = check_programs.check_image_tools(root, eve)
    assert line.status is CheckStatus.LIMITED
    assert "newuidmap, fakeroot" in line.text and "etc/subuid" in line.text
    assert "Install fakeroot, uidmap." in line.cure and line.cure.endswith(" eve")
    for name in ("newuidmap", "fakeroot"):
        program(root, f"usr/bin/{name}")
    put(root, {"etc/subuid": "eve:100000:65536\n", "etc/subgid": "adam:100000:65536\n"})
    assert "etc/subgid" in check_programs.check_image_tools(root, eve).text
    put(root, {"etc/subgid": "adam:100000:65536\n1000:165536:65536\n"})
    assert check_programs.check_image_tools(root, eve).status is CheckStatus.OK


def test_a_user_without_the_privilege_gets_user_mode(tmp_path: Path) -> None:
    root = full_host(tmp_path)
    put(root, {"proc/self/status": "CapEff:\t0000000000000000\n"})
    line = check_programs.check_network(root)
    assert line.status is CheckStatus.LIMITED
    assert "CAP_NET_ADMIN" in line.text and "user-mode network by QEMU itself works" in line.text


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({"boot/config-6.12.0-amd64": "CONFIG_BRIDGE=m\nCONFIG_BRIDGE_VLAN_FILTERING=y\n"}, CheckStatus.OK),
        ({"boot/config-6.12.0-amd64": "CONFIG_BRIDGE=m\n"}, CheckStatus.LIMITED),
        (
            {"boot/config-6.12.0-amd64": "# CONFIG_BRIDGE_VLAN_FILTERING is not set\n"},
            CheckStatus.LIMITED,
        ),
        ({"sys/class/net/br0/bridge/vlan_filtering": "0\n"}, CheckStatus.OK),
        (
            {
                "sys/class/net/br0/bridge/stp_state": "0\n",
                "boot/config-6.12.0-amd64": "CONFIG_BRIDGE_VLAN_FILTERING=y\n",
            },
            CheckStatus.LIMITED,
        ),
        ({"proc/config.gz": "not compressed"}, CheckStatus.OK),
    ],
)
def test_a_bridge_without_vlans_is_told(tmp_path: Path, files: dict[str, str], status: CheckStatus) -> None:
    root = full_host(tmp_path)
    put(root, files)
    line = check_programs.check_network(root)
    assert line.status is status
    assert ("VLAN filtering" in line.text) == ("VLAN_FILTERING" in line.cure) == bool(line.cure)


def test_compressed_settings_of_the_kernel_are_read(tmp_path: Path) -> None:
    root = full_host(tmp_path)
    with gzip.open(root / "proc/config.gz", "wb") as file:
        file.write(b"CONFIG_BRIDGE=y\nCONFIG_A_AND_MORE=y\nCONFIG_B=m\n")
    assert [built_with(root, f"CONFIG_{name}") for name in ("BRIDGE", "A", "B")] == [True, False, True]


def test_modules(tmp_path: Path) -> None:
    root = full_host(tmp_path)
    put(root, {"lib/modules/6.12.0-amd64/modules.builtin": "kernel/drivers/char/tpm/tpm.ko\n"})
    assert module_state(root, "nvme_tcp") is ModuleState.LOADED
    assert module_state(root, "nvme_rdma") is ModuleState.LOADABLE
    assert module_state(root, "tpm") is ModuleState.LOADED
    assert module_state(root, "nvme") is ModuleState.ABSENT


@pytest.mark.parametrize(
    ("free", "total", "status"),
    [
        (500, 1000, CheckStatus.OK),
        (90, 1000, CheckStatus.LIMITED),
        (9, 20, CheckStatus.LIMITED),
        (0, 20, CheckStatus.MISSING),
    ],
)
def test_space_in_gibibytes(
    free: int, total: int, status: CheckStatus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_kernel, "free_space", lambda path: (free << 30, total << 30))
    assert check_kernel.check_space(tmp_path).status is status


def test_a_user_outside_the_group_is_told_the_command() -> None:
    line = check_kernel.check_privileges(Account(1000, "eve", frozenset({"eve"})))
    assert "usermod -aG kvm eve" in line.cure


def test_the_kernel_tells_about_the_clock() -> None:
    assert clock_synchronised() in (True, False)


def test_our_own_account() -> None:
    assert Account.current().uid == os.geteuid()
