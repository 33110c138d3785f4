"""How much room a machine is started with for what is added to it while it runs. Pure.

Room is kept with the machine, not worked out again: after cards and processors were added, the
same rule would give another machine, which the memory saved of it would not fit.
"""

from holdfast.machine.devices.board import XAPIC_CPUS
from holdfast.machine.devices.ports import DISK_PORTS, NIC_PORTS
from holdfast.spec.vm import DiskBus, Layout, VmSpec

_LEAST_CPUS = 8
_TIMES = 4
"""Guests set memory aside for each processor that could come (Linux about 0.2 MiB): not for hundreds."""


def layout(spec: VmSpec) -> Layout:
    """For a machine that starts anew. Raises TooManyDevices."""
    cpus = max(spec.cpus, min(max(_TIMES * spec.cpus, _LEAST_CPUS), XAPIC_CPUS))
    on_ports = [disk.id for disk in spec.disks if disk.bus is not DiskBus.SCSI]
    return Layout(
        nic_ports=NIC_PORTS.count(NIC_PORTS.places(nic.id for nic in spec.nics).values()),
        disk_ports=DISK_PORTS.count(DISK_PORTS.places(on_ports).values()),
        max_cpus=cpus,
    )


def as_started(spec: VmSpec) -> VmSpec:
    """What is recorded of a machine that starts anew from `spec`. Raises TooManyDevices."""
    return spec.model_copy(update={"layout": layout(spec)})


def with_layout(running: VmSpec) -> VmSpec:
    """The same machine, its layout written down; for one that was started before layouts were kept."""
    if running.layout is not None:
        return running
    return running.model_copy(
        update={"layout": layout(running).model_copy(update={"max_cpus": running.cpus})}
    )


def free_nic_ports(running: VmSpec) -> list[int]:
    """Numbers of the ports without a card, of a machine under way."""
    taken = set(NIC_PORTS.places(nic.id for nic in running.nics).values())
    laid = with_layout(running).layout
    return [number for number in range(laid.nic_ports if laid else 0) if number not in taken]
