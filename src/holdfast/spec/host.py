"""What a host is and can do, as `host check` and `host show` tell it."""

from enum import StrEnum

from holdfast.spec.model import Frozen
from holdfast.spec.vm import Acceleration


class CheckStatus(StrEnum):
    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


class CheckLine(Frozen):
    id: str
    """Stable, kebab-case: `acceleration`, `qemu`, `firmware`, ..."""
    title: str
    status: CheckStatus
    text: str
    """What was found."""
    cure: str = ""
    """What to do; empty where the status is ok."""


class AccelerationVerdict(Frozen):
    """What a real probe guest showed on this kernel with this QEMU."""

    acceleration: Acceleration
    reason: str
    """Why not KVM, in plain words; or what ran under it."""
    probe: str
    """Which guest decided: `linux`, `ovmf`, or `none` where no guest could be run."""
    key: str
    """Kernel release, QEMU version and probe that the verdict holds for."""
    cpu_model: str = ""
    """QEMU's CPU model that the probe ran with under KVM: `host` or a baseline; empty under TCG."""


class Cpu(Frozen):
    id: int
    node: int
    core: int
    socket: int
    kind: str
    """`performance`, `efficiency` or `uniform`."""
    online: bool


class NumaNode(Frozen):
    id: int
    cpus: tuple[int, ...]
    memory: int
    """Bytes."""
    free: int


class HostDevice(Frozen):
    address: str
    """PCI address `0000:01:00.0`."""
    kind: str
    """`network`, `nvme`, `gpu`, `storage`, `other`."""
    vendor: str
    device: str
    driver: str | None
    iommu_group: int | None


class HostInventory(Frozen):
    name: str
    kernel: str
    cpu_model: str
    cpus: tuple[Cpu, ...]
    nodes: tuple[NumaNode, ...]
    memory: int
    memory_available: int
    devices: tuple[HostDevice, ...]
