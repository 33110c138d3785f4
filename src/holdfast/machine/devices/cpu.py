"""Processors: one socket, so that guests licensed by socket see all of them."""

from holdfast.machine.devices.board import XAPIC_CPUS
from holdfast.machine.devices.quoting import device
from holdfast.spec.vm import Acceleration, GuestOs

# All there is, because distributions ask for x86-64-v3 by now and want RDRAND early (it boots as fast as
# the baseline); without the fifth level of page tables, which a guest of this size would only walk.
_EMULATED = "max,la57=off"

# Microsoft, Hypervisor Top-Level Functional Specification; QEMU, docs/system/i386/hyperv.rst.
_HYPERV = (
    "hv-relaxed=on,hv-vapic=on,hv-spinlocks=0x1fff,hv-vpindex=on,hv-runtime=on,hv-time=on,hv-synic=on,"
    "hv-stimer=on,hv-frequencies=on,hv-tlbflush=on,hv-ipi=on"
)


def cpu(
    cpus: int, acceleration: Acceleration, guest: GuestOs, model: str, most: int | None = None
) -> list[str]:
    """`model` is QEMU's name, with features where wanted; empty chooses what fits the acceleration.

    `most` is how many there can come to be; None: no more than there are.
    """
    if acceleration is Acceleration.KVM:
        features = [model or "host", "host-phys-bits=on"]
        if guest is GuestOs.WINDOWS:
            features.append(_HYPERV)
    else:
        features = [model or _EMULATED]
    if cpus > XAPIC_CPUS:
        features.append("x2apic=on")
    most = most or cpus
    spare = f",maxcpus={most}" if most > cpus else ""
    return ["-cpu", ",".join(features), "-smp", f"cpus={cpus}{spare},sockets=1,cores={most},threads=1"]


def interrupt_remapping(cpus: int) -> list[str]:
    """What more processors than 8-bit APIC ids can name need; comes before every other PCI device."""
    if cpus <= XAPIC_CPUS:
        return []
    return device("intel-iommu", id="iommu", intremap="on", eim="on")
