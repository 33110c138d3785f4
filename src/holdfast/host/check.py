"""`holdfast host check`: what this host can do for VMs, a line for each matter, with the cure.

The lines are made side by side and none can spoil another: one that fails or takes too long says
so in its own place. Nothing is kept; the acceleration's verdict is the probe's.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.host import check_kernel, check_keys, check_programs
from holdfast.host.check_programs import QemuFacts, Runner
from holdfast.host.clock import clock_synchronised
from holdfast.spec.errors import HoldfastError
from holdfast.spec.firmware_state import HostKeyFacts
from holdfast.spec.host import AccelerationVerdict, CheckLine, CheckStatus

_PATIENCE = 20.0  # seconds for a line
_PROBE_PATIENCE = 90.0  # the longest that the acceleration probe can take


@dataclass(frozen=True)
class CheckedHost:
    """Where the lines read from. Tests give a folder that looks like a host."""

    runner: Runner
    state: Path
    """The state folder, for the space that it has."""
    acceleration: Callable[[], Awaitable[AccelerationVerdict]]
    qemu: Callable[[], Awaitable[QemuFacts]]
    """Raises a HoldfastError where QEMU is missing or mute."""
    host_key: Callable[[], Awaitable[HostKeyFacts]]
    root: Path = Path("/")
    account: check_kernel.Account = field(default_factory=check_kernel.Account.current)
    clock: Callable[[], bool] = clock_synchronised


async def check(host: CheckedHost) -> list[CheckLine]:
    """Every line, in the order in which people should read them. Raises nothing of its own."""
    root = host.root
    return list(
        await asyncio.gather(
            _line("acceleration", "Acceleration", _acceleration(host), _PROBE_PATIENCE),
            _line("qemu", "QEMU", _qemu(host)),
            _line("firmware", "UEFI firmware", asyncio.to_thread(check_programs.check_firmware, root)),
            _line("swtpm", "vTPM", check_programs.check_swtpm(root, host.runner)),
            _line("host-key", "Host key", _host_key(host)),
            _line(
                "image-tools",
                "Image tools",
                asyncio.to_thread(check_programs.check_image_tools, root, host.account),
            ),
            _line("network", "Network", asyncio.to_thread(check_programs.check_network, root)),
            _line("privileges", "Privileges", asyncio.to_thread(check_kernel.check_privileges, host.account)),
            _line("memory", "Memory", asyncio.to_thread(check_kernel.check_memory, root)),
            _line("space", "Space", asyncio.to_thread(check_kernel.check_space, host.state)),
            _line("huge-pages", "Huge pages", asyncio.to_thread(check_kernel.check_huge_pages, root)),
            _line("cgroups", "Control groups", asyncio.to_thread(check_kernel.check_cgroups, root)),
            _line("iommu", "IOMMU", asyncio.to_thread(check_kernel.check_iommu, root)),
            _line("nvme-of", "NVMe over fabrics", asyncio.to_thread(check_kernel.check_nvme_of, root)),
            _line("clock", "Clock", _clock(host)),
        )
    )


async def _acceleration(host: CheckedHost) -> CheckLine:
    return check_kernel.check_acceleration(await host.acceleration(), host.root)


async def _qemu(host: CheckedHost) -> CheckLine:
    try:
        return check_programs.check_qemu(await host.qemu())
    except HoldfastError as error:
        return check_programs.check_qemu(error)


async def _host_key(host: CheckedHost) -> CheckLine:
    return check_keys.check_host_key(await host.host_key())


async def _clock(host: CheckedHost) -> CheckLine:
    return check_kernel.check_clock(host.clock())


async def _line(
    line_id: str, title: str, work: Awaitable[CheckLine], patience: float = _PATIENCE
) -> CheckLine:
    try:
        async with asyncio.timeout(patience):
            return await work
    except TimeoutError:
        text, cure = f"could not be found out within {patience:g} s", "Try again when the host is less busy."
    except HoldfastError as error:
        text, cure = f"could not be found out: {error.message}", error.cure or "See the daemon's log."
    except (OSError, ValueError, KeyError) as error:
        text, cure = (
            f"could not be found out: {error}",
            "Let the daemon read /proc and /sys.",
        )
    return CheckLine(id=line_id, title=title, status=CheckStatus.LIMITED, text=text, cure=cure)
