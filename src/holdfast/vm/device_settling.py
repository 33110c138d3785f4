"""What QEMU has and what is recorded of it, brought together: after a crash, and when a guest lets go late.

A device is recorded before it is plugged and forgotten after it is gone, so QEMU never has more than
the record names; what it has less is dropped here, with what stood beside it on the host.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import structlog

from holdfast.catalog.tables import VmRow
from holdfast.machine.layout import with_layout
from holdfast.machine.running import RunningMachine
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import Nic, VmSpec
from holdfast.vm.records import VmRecord, change_running
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)


class _Plug(Protocol):
    """Devices of one kind in a machine, by their ids."""

    async def has(self, device: str, /) -> bool: ...

    async def close(self, device: str, /) -> None: ...


class _Device(Protocol):
    @property
    def id(self) -> str: ...


D = TypeVar("D", bound=_Device)


async def settle_devices(rooms: Rooms, record: VmRecord, machine: RunningMachine) -> VmRecord:
    """Forget what a running machine no longer has; returns the record as it then is."""
    running = record.running_spec
    if running is None:
        return record

    async def detach(nic: Nic) -> None:
        await rooms.ports.detach(record.id, nic)

    record = await settle_size(rooms, record, machine)
    record = await _forget_gone(rooms, record, machine.cds, "cd_drives", running.cd_drives)
    record = await _forget_gone(rooms, record, machine.usb, "usb", running.usb)
    return await _forget_gone(rooms, record, machine.nics, "nics", running.nics, detach)


async def _forget_gone(
    rooms: Rooms,
    record: VmRecord,
    plug: _Plug,
    field: str,
    devices: tuple[D, ...],
    release: Callable[[D], Awaitable[None]] | None = None,
) -> VmRecord:
    """`field`: the specification's, which holds `devices`; `release` lets go of what the host had for one."""
    kept = tuple([device for device in devices if await plug.has(device.id)])
    if kept == devices:
        return record
    gone = [device for device in devices if device not in kept]
    for device in gone:
        await plug.close(device.id)
        if release is not None:
            await release(device)
    data = {field: [device.id for device in gone]}
    return await rooms.records.change(
        record.id, lambda row: set_running(row, **{field: kept}), "vm.unplugged", data
    )


async def settle_size(rooms: Rooms, record: VmRecord, machine: RunningMachine) -> VmRecord:
    """Record how many processors and how much memory a running machine has; returns the record then."""
    running = record.running_spec
    if running is None:
        return record
    now, laid = await machine.size.now(), with_layout(running).layout
    old = laid.dimms if laid else ()
    if laid is None or (now.cpus, now.dimms) == (running.cpus, old):
        return record
    for slot in {dimm.slot for dimm in old} - {dimm.slot for dimm in now.dimms}:
        await machine.size.forget_dimm(slot)
    memory = running.memory + sum(each.size for each in now.dimms) - sum(each.size for each in old)
    update = {
        "cpus": now.cpus,
        "memory": memory,
        "layout": laid.model_copy(update={"dimms": now.dimms}),
    }
    data = {"id": record.id, "cpus": now.cpus, "memory": memory}
    return await rooms.records.change(record.id, lambda row: set_running(row, **update), "vm.resized", data)


async def settle_ports(rooms: Rooms, record: VmRecord) -> None:
    """A daemon that ended while it moved a NIC left its port where the record does not say."""
    running = record.running_spec
    for nic in running.nics if running else ():
        try:
            if not nic.cut and not await rooms.ports.is_user_mode(nic):
                await rooms.ports.move(record.id, record.name, nic)
        except HoldfastError as error:
            log.warning("a port could not be put right", vm=record.name, nic=nic.id, error=error.message)


def set_running(row: VmRow, **update: object) -> None:
    """Change what is recorded of the machine under way; nothing happens where there is none."""
    change_running(row, lambda spec: spec.model_copy(update=update))


def nic_of(spec: VmSpec | None, nic: str) -> Nic | None:
    return next((each for each in spec.nics if each.id == nic), None) if spec else None
