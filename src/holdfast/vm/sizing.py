"""More or fewer processors and more or less memory for a guest that runs.

    record what is wished ──▶ QEMU plugs or asks back ──▶ record what the machine has ──▶ the guest uses it

QEMU itself is asked what the machine has, so nothing about it can be lost on the way. What does not
come about now is there at the next start; `waiting` says why.
"""

import asyncio
import contextlib
from dataclasses import dataclass

import structlog

from holdfast.host.space import require_memory
from holdfast.machine.hotplug import UnplugIgnored, UnplugRefused
from holdfast.machine.layout import Waits, growth, removable, with_layout
from holdfast.machine.running import RunningMachine
from holdfast.qmp.agent import GuestAgent
from holdfast.qmp.agent_devices import online_cpus, online_memory, use_cpus, use_memory
from holdfast.qmp.errors import QmpRefused
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import Acceleration, VmSpec
from holdfast.vm.device_settling import settle_size
from holdfast.vm.guest_sight import asked, patience
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import VmRecord
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)

_MOVABLE = 3
"""How many times the memory of its start a guest may have besides in pieces that it can give back: its
kernel cannot use those for itself."""


@dataclass(frozen=True)
class GuestSize:
    """How much a guest uses, by the word of its agent; None: not known."""

    cpus: int | None = None
    memory: int | None = None


async def require_room(record: VmRecord, memory: int | None) -> None:
    """The host must have what a machine under way would grow by. Raises MemoryShort."""
    running = record.running_spec
    if running is not None and memory is not None and memory > running.memory:
        await asyncio.to_thread(require_memory, memory - running.memory)


async def guest_size(owner: VmOwner) -> GuestSize:
    return GuestSize(await asked(owner, online_cpus), await asked(owner, online_memory))


async def resize(rooms: Rooms, owner: VmOwner) -> None:
    """Bring the machine that runs to the size that is recorded for the next start, as far as it goes.

    In the owner's task.
    """
    machine, running, wanted = owner.machine, owner.record.running_spec, owner.record.spec
    if machine is None or running is None:
        return
    limit = patience(owner)
    running = with_layout(running)
    try:
        for part in (_cpus(machine, running, wanted, limit), _memory(machine, owner.record, wanted, limit)):
            try:
                await part
            except (UnplugIgnored, UnplugRefused, QmpRefused) as error:
                log.info("the size of a machine stays as it is", vm=owner.record.name, why=error.message)
    finally:
        owner.record = await asyncio.shield(settle_size(rooms, owner.record, machine))


async def _cpus(machine: RunningMachine, running: VmSpec, wanted: VmSpec, limit: float) -> None:
    most = running.layout.max_cpus if running.layout else running.cpus
    if wanted.cpus <= most:
        for _ in range(wanted.cpus - running.cpus):
            await machine.size.add_cpu()
    for _ in range(running.cpus - wanted.cpus):
        await machine.size.remove_cpu(limit)


async def _memory(machine: RunningMachine, record: VmRecord, wanted: VmSpec, limit: float) -> None:
    running = record.running_spec
    if running is None:
        return
    if wanted.memory > running.memory:
        piece = growth(running, wanted.memory, record.acceleration or Acceleration.TCG)
        if not isinstance(piece, Waits):
            await machine.size.add_dimm(piece.slot, piece.size)
    elif wanted.memory < running.memory:
        pieces = removable(running, wanted.memory)
        for dimm in pieces if not isinstance(pieces, Waits) else ():
            await machine.size.remove_dimm(dimm.slot, limit)


async def use(owner: VmOwner, before: GuestSize, was: VmSpec | None) -> None:
    """Have the guest use what was plugged, and read again how much it uses."""
    now = owner.record.running_spec
    if now is None or was is None or owner.guest is None:
        return
    if now.cpus > was.cpus:

        async def more_cpus(agent: GuestAgent, limit: float) -> bool:
            return await use_cpus(agent, now.cpus, limit) >= now.cpus

        await asked(owner, more_cpus, bool)
    if now.memory > was.memory and before.memory is not None:
        wanted = before.memory + now.memory - was.memory
        base = now.memory - sum(dimm.size for dimm in (now.layout.dimms if now.layout else ()))
        movable = now.memory - base <= _MOVABLE * base

        async def more_memory(agent: GuestAgent, limit: float) -> bool:
            left = wanted - await online_memory(agent, limit)
            return left <= 0 or await use_memory(agent, left, limit, movable=movable) >= wanted

        await asked(owner, more_memory, bool)
    with contextlib.suppress(HoldfastError):
        await owner.guest.measure()
