"""Running one real guest for a moment, to see whether an accelerator carries ordinary guests.

Two guests are known, and neither needs a disk, a network or anything of ours inside it:
`linux`, a kernel started without a root file system (that it gets as far as missing one proves that
it ran), and `ovmf`, the firmware that VMs use, Secure Boot and System Management Mode included
(that it reaches its boot menu proves that). Nothing is kept here; the verdict is acceleration.py's.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from holdfast.host.firmware import FirmwareBuild
from holdfast.host.processes import Processes
from holdfast.spec.vm import Acceleration

LIMIT = 15.0
"""Seconds. Even emulated, both guests need under 4 s on a slow core; under a sound KVM about 1 s."""
_GRACE = 5.0
_KEPT = 64 * 1024
_ALL_OUTPUT = ("sh", "-c", 'exec "$0" "$@" 2>&1')  # QEMU's errors and the guest's words in one stream
_BROKEN = re.compile(
    rb"KVM internal error|KVM: entry failed|Kernel panic - not syncing[^\n]*\n|X64 Exception Type"
)
_COMPLAINT = re.compile(r"qemu-system-\w+: (?!warning:)(.*)|(KVM internal error.*|Kernel panic.*)")


@dataclass(frozen=True)
class ProbeGuest:
    name: str
    """`linux` or `ovmf`."""
    title: str
    """For people: `the Linux kernel /boot/vmlinuz-...`."""
    arguments: tuple[str, ...]
    proof: re.Pattern[bytes]
    """What stands on the serial line once it has run."""


class Outcome(StrEnum):
    RAN = "ran"
    HUNG = "hung"
    """It was still silent at the limit."""
    BROKE = "broke"
    """QEMU refused, aborted or the guest crashed."""


@dataclass(frozen=True)
class ProbeResult:
    outcome: Outcome
    seconds: float
    detail: str
    """The decisive line of QEMU's or the guest's; empty where there is none."""


def linux_guest(kernel: Path) -> ProbeGuest:
    return ProbeGuest(
        name="linux",
        title=f"the Linux kernel {kernel}",
        arguments=(
            *("-machine", "q35"),
            *("-kernel", str(kernel)),
            *("-append", "console=ttyS0 panic=-1 root=none"),
        ),
        proof=re.compile(rb"Unable to mount root fs|No working init found|Waiting for root device"),
    )


def ovmf_guest(build: FirmwareBuild) -> ProbeGuest:
    """The firmware as VMs get it. Its variables are read-only: the template must stay as it is."""
    smm = build.requires_smm
    return ProbeGuest(
        name="ovmf",
        title="the UEFI firmware" + (" with Secure Boot" if build.secure_boot else ""),
        arguments=(
            *("-machine", f"q35,smm={'on' if smm else 'off'},pflash0=code,pflash1=vars"),
            *(("-global", "driver=cfi.pflash01,property=secure,value=on") if smm else ()),
            *("-blockdev", _flash("code", build.code_format, build.code)),
            *("-blockdev", _flash("vars", build.template_format, build.template)),
        ),
        proof=re.compile(rb"BdsDxe|UEFI Interactive Shell|Shell>|Boot Manager"),
    )


def _flash(node: str, image_format: str, path: Path) -> str:
    name = str(path).replace(",", ",,")
    return f"driver={image_format},node-name={node},read-only=on,file.driver=file,file.filename={name}"


async def run_probe(
    processes: Processes,
    qemu: str,
    guest: ProbeGuest,
    *,
    accelerator: Acceleration = Acceleration.KVM,
    cpu_model: str = "host",
    limit: float = LIMIT,
) -> ProbeResult:
    """Run a guest for `limit` seconds at most; QEMU is killed as soon as the outcome is known.

    A QEMU that the kernel does not let die is left behind rather than waited for: this returns
    within `limit` + 5 s in every case.

    Raises:
        ProgramMissing: QEMU is not installed.
    """
    argv = (
        *(*_ALL_OUTPUT, qemu),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", accelerator.value, "-cpu", cpu_model, "-m", "256", "-smp", "1"),
        *("-serial", "stdio", *guest.arguments),
    )
    seen = bytearray()
    decided = asyncio.Event()

    def look(chunk: bytes) -> None:
        seen.extend(chunk)
        del seen[:-_KEPT]
        if guest.proof.search(seen) or _BROKEN.search(seen):
            decided.set()

    begun = time.monotonic()
    child = asyncio.create_task(processes.run(argv, owner="host", role="probe", on_stdout=look))
    watch = asyncio.create_task(decided.wait())
    try:
        await asyncio.wait({child, watch}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        seconds = time.monotonic() - begun
        ended = child.done()
        if ended:
            child.result()
    finally:
        watch.cancel()
        child.cancel()
        await asyncio.wait({child}, timeout=_GRACE)
    if guest.proof.search(seen):
        return ProbeResult(Outcome.RAN, seconds, "")
    outcome = Outcome.BROKE if ended or decided.is_set() else Outcome.HUNG
    return ProbeResult(outcome, seconds, _complaint(bytes(seen)))


def _complaint(output: bytes) -> str:
    detail = ""
    for line in output.decode(errors="replace").splitlines():
        match = _COMPLAINT.search(line)
        if match and not detail:  # the first complaint is the cause, what follows are its echoes
            detail = "".join(c for c in (match[1] or match[2]) if c.isprintable())[:200].strip()
    return detail


def readable_kernels(given: Sequence[Path], root: Path = Path("/")) -> list[Path]:
    """Kernels that can serve as a probe guest: those given, then the host's own, newest first."""
    found = [*given]
    with contextlib.suppress(OSError):
        own = [path for path in (root / "boot").glob("vmlinuz-*") if path.is_file()]
        found += sorted(own, key=lambda path: path.stat().st_mtime, reverse=True)
    return [path for path in found if _opens(path)]


def _opens(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False
