"""Whether KVM carries ordinary guests here: probed with real ones, remembered, never assumed.

/dev/kvm may open and QEMU may start with it while no ordinary guest gets anywhere (some nested
hosts). So the firmware and, where one is at hand, a Linux kernel are run under KVM for a moment;
all of them must run. The verdict holds for this kernel, this QEMU and these guests and is kept in
the fact store; obstacles that a person can remove at any time (a missing module, a permission) are
looked at afresh each time and never kept.
"""

import asyncio
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from holdfast.host.firmware import find_firmware
from holdfast.host.probe_guest import (
    LIMIT,
    Outcome,
    ProbeGuest,
    ProbeResult,
    linux_guest,
    ovmf_guest,
    readable_kernels,
    run_probe,
)
from holdfast.host.processes import Processes, ProgramMissing, ToolTimedOut
from holdfast.spec.host import AccelerationVerdict
from holdfast.spec.vm import Acceleration

_CPU_MODELS = ("host", "qemu64")  # the baseline too: some hosts abort on MSRs that only `host` touches
_VERSION = re.compile(rb"version (\d+\.\d+(?:\.\d+)?)")


class FactStore(Protocol):
    """Durable memory of findings; the catalog's."""

    async def get(self, key: str) -> dict[str, Any] | None: ...
    async def put(self, key: str, value: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Obstacle:
    """Why /dev/kvm cannot even be opened, and what removes that."""

    reason: str
    cure: str


def kvm_obstacle(root: Path = Path("/")) -> Obstacle | None:
    """What stands before /dev/kvm; None where it opens."""
    device = root / "dev/kvm"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return _absent(root)
    except PermissionError:
        return Obstacle(
            "/dev/kvm exists, but this user may not open it",
            "Add the user to the group kvm (usermod -aG kvm USER) and log in again.",
        )
    except OSError as error:
        return Obstacle(
            f"/dev/kvm does not open: {error.strerror}",
            "Load the module kvm_intel or kvm_amd (modprobe) and look at the kernel log.",
        )
    return None


def _absent(root: Path) -> Obstacle:
    try:
        cpuinfo = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        cpuinfo = ""
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        if re.search(rf"^flags\s*:.*\b{flag}\b", cpuinfo, re.MULTILINE):
            return Obstacle(
                f"/dev/kvm is missing: the CPU can virtualize, but the module {module} is not loaded",
                f"Run `modprobe {module}`; if it refuses, enable virtualization in the host's firmware.",
            )
    return Obstacle(
        "/dev/kvm is missing and the CPU offers no hardware virtualization",
        "Enable VT-x or AMD-V in the firmware; on a virtual host, enable nested virtualization for it.",
    )


class AccelerationProbe:
    """Owns the verdict of one host. One probe at a time; who asks meanwhile waits for the same one."""

    def __init__(
        self,
        processes: Processes,
        facts: FactStore,
        *,
        qemu: str = "qemu-system-x86_64",
        kernels: Callable[[], Sequence[Path]] = tuple,
        root: Path = Path("/"),
        limit: float = LIMIT,
    ) -> None:
        """
        Args:
            kernels: Linux kernels of images at hand, best first; the host's own serve after them.
            limit: seconds that one guest may take to show that it runs.
        """
        self._processes = processes
        self._facts = facts
        self._qemu = qemu
        self._kernels = kernels
        self._root = root
        self._limit = limit
        self._lock = asyncio.Lock()
        self._known: AccelerationVerdict | None = None
        self._latest: AccelerationVerdict | None = None
        """Also one that holds only for now: an obstacle that a person can remove."""

    @property
    def known(self) -> AccelerationVerdict | None:
        """The latest verdict, where one is in; never probes."""
        return self._latest

    async def verdict(self, *, afresh: bool = False) -> AccelerationVerdict:
        """Instant when remembered, else after a probe: 1 to 60 s.

        Args:
            afresh: probe again even where a verdict is remembered.
        """
        self._latest = await self._decide(afresh)
        return self._latest

    async def _decide(self, afresh: bool) -> AccelerationVerdict:
        if obstacle := kvm_obstacle(self._root):
            return _emulate(obstacle.reason, "none", "")
        if self._known and not afresh:
            return self._known
        asked_after = self._known
        async with self._lock:
            # Somebody else's probe that ended while we waited is as fresh as ours would be.
            if self._known is None or (afresh and self._known is asked_after):
                found = await self._find(afresh)
                if not found.key:
                    return found
                self._known = found
            return self._known

    async def _find(self, afresh: bool) -> AccelerationVerdict:
        try:
            version = await self._version()
        except (ProgramMissing, ToolTimedOut) as error:
            return _emulate(f"QEMU cannot be asked: {error.message}", "none", "")
        guests = await asyncio.to_thread(self._guests)
        if not guests:
            return _emulate("no guest is at hand to try KVM with: neither OVMF nor a kernel", "none", "")
        names = "+".join(guest.name for guest in guests)
        key = f"acceleration:{platform.release()}:qemu-{version}:{names}"
        kept = None if afresh else await self._facts.get(key)
        if kept is not None:
            try:
                return AccelerationVerdict.model_validate(kept)
            except ValidationError:
                pass  # written by another version: probe again
        verdict = await self._probe(guests, key)
        await self._facts.put(key, verdict.model_dump(mode="json"))
        return verdict

    def _guests(self) -> list[ProbeGuest]:
        """The firmware first: where KVM is unsound it breaks at once, while a kernel hangs to the limit."""
        builds = sorted(find_firmware(self._root), key=lambda build: not build.secure_boot)
        kernels = readable_kernels(self._kernels(), self._root)
        return [*(ovmf_guest(build) for build in builds[:1]), *(linux_guest(path) for path in kernels[:1])]

    async def _version(self) -> str:
        done = await self._processes.run([self._qemu, "--version"], owner="host", timeout=10)
        match = _VERSION.search(done.stdout)
        return match[1].decode() if match else "unknown"

    async def _probe(self, guests: Sequence[ProbeGuest], key: str) -> AccelerationVerdict:
        cpu_models = list(_CPU_MODELS)
        ran = []
        for guest in guests:
            while True:
                result = await run_probe(
                    self._processes, self._qemu, guest, cpu_model=cpu_models[0], limit=self._limit
                )
                if result.outcome is not Outcome.BROKE or len(cpu_models) == 1:
                    break
                cpu_models.pop(0)
            if result.outcome is not Outcome.RAN:
                return _emulate(_why_not(guest, result), guest.name, key)
            ran.append(f"{guest.title} ran under KVM in {result.seconds:.1f} s")
        return AccelerationVerdict(
            acceleration=Acceleration.KVM,
            reason="; ".join(ran),
            probe=guests[-1].name,
            key=key,
            cpu_model=cpu_models[0],
        )


def _why_not(guest: ProbeGuest, result: ProbeResult) -> str:
    if "System Management Mode" in result.detail:
        return "KVM here offers no System Management Mode, which UEFI with Secure Boot needs"
    if result.outcome is Outcome.HUNG:
        return f"/dev/kvm opens, but {guest.title} showed no sign of life under KVM in {result.seconds:.0f} s"
    detail = result.detail or "QEMU ended without a word"
    return f"/dev/kvm opens, but {guest.title} did not run under KVM: {detail}"


def _emulate(reason: str, probe: str, key: str) -> AccelerationVerdict:
    return AccelerationVerdict(acceleration=Acceleration.TCG, reason=reason, probe=probe, key=key)
