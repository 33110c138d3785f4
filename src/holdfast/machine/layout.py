"""How much room a machine is started with for what is added to it while it runs. Pure.

Room is kept with the machine, not worked out again: after cards and processors were added, the
same rule would give another machine, which the memory saved of it would not fit.
"""

from dataclasses import dataclass

from holdfast.machine.devices.board import XAPIC_CPUS
from holdfast.machine.devices.memory import DIMM_STEP, SLOTS, most_memory
from holdfast.machine.devices.ports import DISK_PORTS, NIC_PORTS
from holdfast.spec.units import format_size
from holdfast.spec.vm import Acceleration, Dimm, DiskBus, Layout, VmSpec

_MOST_QUEUES = 64
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
        queues=min(spec.cpus, _MOST_QUEUES),
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


@dataclass(frozen=True)
class Waits:
    """Why a machine under way cannot have what is wished before its next start, in words for people."""

    why: str


def growth(running: VmSpec, memory: int, acceleration: Acceleration) -> Dimm | Waits:
    """The piece of memory that makes `memory` bytes of what a machine under way has less.

    Its address is QEMU's to choose.
    """
    dimms = running.layout.dimms if running.layout else ()
    base = running.memory - sum(dimm.size for dimm in dimms)
    more, most = memory - running.memory, most_memory(base, acceleration)
    taken = {dimm.slot for dimm in dimms}
    if most <= base:
        return Waits("a machine that was started with less than 512 MiB has no room for more memory")
    if memory > most:
        return Waits(f"the machine was started with room for {format_size(most)}")
    if more % DIMM_STEP:
        return Waits(f"guests take more memory in steps of {format_size(DIMM_STEP)} while they run")
    if len(taken) >= SLOTS:
        return Waits(f"memory was added {SLOTS} times, and the machine has no slot left")
    slot = next(number for number in range(SLOTS) if number not in taken)
    return Dimm(slot=slot, size=more, address=0)


def removable(running: VmSpec, memory: int) -> tuple[Dimm, ...] | Waits:
    """The pieces of memory, latest first, without which a machine under way has `memory` bytes."""
    left, chosen = running.memory - memory, []
    for dimm in reversed(running.layout.dimms if running.layout else ()):
        if left >= dimm.size:
            chosen.append(dimm)
            left -= dimm.size
    if left:
        return Waits("a guest gives memory back only in the pieces in which it was added while it ran")
    return tuple(chosen)


def free_nic_ports(running: VmSpec) -> list[int]:
    """Numbers of the ports without a card, of a machine under way."""
    taken = set(NIC_PORTS.places(nic.id for nic in running.nics).values())
    laid = with_layout(running).layout
    return [number for number in range(laid.nic_ports if laid else 0) if number not in taken]
