"""The verdict's rules, with a QEMU that is a small script: what is remembered, retried, told."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fake_host import put

from holdfast.host.acceleration import AccelerationProbe, kvm_obstacle
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.spec.vm import Acceleration

SCRIPT = """#!/bin/sh
[ "$1" = --version ] && {{ echo "QEMU emulator version 9.2.1 (x)"; exit 0; }}
echo run >> {log}
case "$*" in *-kernel*) guest=linux;; *) guest=ovmf;; esac
case "$*" in *"-cpu host"*) cpu=host;; *) cpu=base;; esac
case $guest-$cpu in
{cases}
esac
"""
PANIC = "echo 'VFS: Unable to mount root fs on unknown-block(0,0)'; sleep 30"
MENU = "echo 'BdsDxe: No bootable option or device was found.'; sleep 30"
ABORT = "echo 'qemu-system-x86_64: error: failed to set MSR 0x10a' >&2; exit 134"


class Memory:
    def __init__(self) -> None:
        self.facts: dict[str, dict[str, Any]] = {}

    async def get(self, key: str) -> dict[str, Any] | None:
        return self.facts.get(key)

    async def put(self, key: str, value: dict[str, Any]) -> None:
        self.facts[key] = json.loads(json.dumps(value))


class Bench:
    """A fake host whose /dev/kvm opens, with firmware and a kernel."""

    def __init__(self, folder: Path, cases: str) -> None:
        self.root = folder / "host"
        self.log = folder / "runs"
        self.qemu = folder / "qemu"
        self.qemu.write_text(SCRIPT.format(log=self.log, cases=cases))
        self.qemu.chmod(0o755)
        self.facts = Memory()
        self.processes = Processes(StateFolder(folder / "state", folder / "run"))
        descriptor = {
            "description": "x",
            "interface-types": ["uefi"],
            "mapping": {
                "device": "flash",
                "executable": {"filename": "/code.fd", "format": "raw"},
                "nvram-template": {"filename": "/vars.fd", "format": "raw"},
            },
            "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
            "features": ["secure-boot", "requires-smm"],
        }
        put(
            self.root,
            {
                "dev/kvm": "",
                "code.fd": "c",
                "vars.fd": "v",
                "boot/vmlinuz-6.1": "k",
                "usr/share/qemu/firmware/50.json": json.dumps(descriptor),
            },
        )

    def probe(self, limit: float = 5) -> AccelerationProbe:
        return AccelerationProbe(self.processes, self.facts, qemu=str(self.qemu), root=self.root, limit=limit)

    @property
    def runs(self) -> int:
        return self.log.read_text().count("run") if self.log.exists() else 0


async def test_both_guests_must_run_for_kvm(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"ovmf-host) {MENU};;\nlinux-host) {PANIC};;")
    verdict = await bench.probe().verdict()
    assert (verdict.acceleration, verdict.probe, verdict.cpu_model) == (Acceleration.KVM, "linux", "host")
    assert verdict.key.endswith(":qemu-9.2.1:ovmf+linux") and bench.runs == 2
    assert bench.processes.find() == []


async def test_a_silent_kernel_means_emulation(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"ovmf-host) {MENU};;\nlinux-host) echo Booting from ROM; sleep 30;;")
    verdict = await bench.probe(limit=0.5).verdict()
    assert (verdict.acceleration, verdict.probe) == (Acceleration.TCG, "linux")
    assert "no sign of life" in verdict.reason and "vmlinuz-6.1" in verdict.reason
    assert bench.processes.find() == []


async def test_an_abort_on_the_host_model_is_retried_with_a_baseline(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"*-host) {ABORT};;\novmf-base) {MENU};;\nlinux-base) {PANIC};;")
    verdict = await bench.probe().verdict()
    assert (verdict.acceleration, verdict.cpu_model) == (Acceleration.KVM, "qemu64")
    assert bench.runs == 3  # the host model is not tried again for the second guest


async def test_what_qemu_said_last_is_the_reason(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"*) {ABORT};;")
    verdict = await bench.probe().verdict()
    assert verdict.acceleration is Acceleration.TCG and "failed to set MSR 0x10a" in verdict.reason


async def test_missing_smm_is_said_in_plain_words(tmp_path: Path) -> None:
    words = "qemu-system-x86_64: System Management Mode not supported by this hypervisor."
    bench = Bench(tmp_path, f"*) echo '{words}' >&2; exit 1;;")
    assert "offers no System Management Mode" in (await bench.probe().verdict()).reason


async def test_another_panic_is_no_proof(tmp_path: Path) -> None:
    panic = "echo 'Kernel panic - not syncing: Attempted to kill the idle task!'; sleep 30"
    bench = Bench(tmp_path, f"ovmf-*) {MENU};;\nlinux-*) {panic};;")
    verdict = await bench.probe().verdict()
    assert verdict.acceleration is Acceleration.TCG and "idle task" in verdict.reason


async def test_a_verdict_is_remembered_and_asked_afresh(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"ovmf-host) {MENU};;\nlinux-host) {PANIC};;")
    first = await bench.probe().verdict()
    probe = bench.probe()
    assert await probe.verdict() == first and bench.runs == 2
    again = await probe.verdict(afresh=True)
    # The reason tells how long the guests took.
    assert again == first.model_copy(update={"reason": again.reason}) and bench.runs == 4
    bench.facts.facts[first.key] = {"written": "by another version"}
    again = await bench.probe().verdict()
    assert again == first.model_copy(update={"reason": again.reason}) and bench.runs == 6


async def test_many_askers_share_one_probe(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"ovmf-host) {MENU};;\nlinux-host) {PANIC};;")
    probe = bench.probe()
    verdicts = await asyncio.gather(*(probe.verdict() for _ in range(10)))
    assert len(set(map(id, verdicts))) == 1 and bench.runs == 2
    assert probe.known is verdicts[0]


async def test_obstacles_are_never_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"ovmf-host) {MENU};;\nlinux-host) {PANIC};;")
    (bench.root / "dev/kvm").unlink()
    probe = bench.probe()
    verdict = await probe.verdict()
    assert (verdict.acceleration, verdict.probe) == (Acceleration.TCG, "none")
    assert bench.runs == 0 and bench.facts.facts == {}
    put(bench.root, {"dev/kvm": ""})
    assert (await probe.verdict()).acceleration is Acceleration.KVM


async def test_without_qemu_there_is_a_reason_and_no_memory(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "")
    bench.qemu.unlink()
    verdict = await bench.probe().verdict()
    assert "not installed" in verdict.reason and bench.facts.facts == {}


@pytest.mark.parametrize(
    ("flags", "cure"), [("fpu vmx", "modprobe kvm_intel"), ("fpu svm", "modprobe kvm_amd"), ("fpu", "nested")]
)
def test_why_the_device_is_missing(tmp_path: Path, flags: str, cure: str) -> None:
    put(tmp_path, {"proc/cpuinfo": f"processor\t: 0\nflags\t\t: {flags} lm\n"})
    obstacle = kvm_obstacle(tmp_path)
    assert obstacle is not None and cure in obstacle.cure


@pytest.mark.skipif(os.geteuid() == 0, reason="root opens everything")
def test_a_device_of_others_names_the_group(tmp_path: Path) -> None:
    put(tmp_path, {"dev/kvm": ""})
    (tmp_path / "dev/kvm").chmod(0)
    obstacle = kvm_obstacle(tmp_path)
    assert obstacle is not None and "group kvm" in obstacle.cure
