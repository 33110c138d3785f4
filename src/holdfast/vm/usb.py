"""USB devices of the host in VMs: added and removed, while a VM runs and while it does not.

add:     record (both specs) ──▶ device opened ──▶ QEMU     a failure takes all of it back
remove:  record (next start) ──▶ QEMU ──▶ record (running)
"""

import asyncio
import os
from collections.abc import Awaitable, Callable

from holdfast.catalog.tables import VmRow
from holdfast.host.usb_devices import UsbHostDevice, find_usb, open_usb
from holdfast.machine.devices.ports import TooManyDevices
from holdfast.machine.running import RunningMachine
from holdfast.spec.devices import NewUsb, UsbView
from holdfast.spec.errors import Conflict, NotFound
from holdfast.spec.vm import MAX_USB, UsbDevice, VmSpec
from holdfast.vm.admission import Verb
from holdfast.vm.device_settling import set_running, settle_devices
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import set_spec
from holdfast.vm.rooms import Rooms
from holdfast.vm.usb_devices import require_unused

Named = Callable[[str], Awaitable[VmOwner]]
"""From a VM's name or id to its owner."""


class UsbNotFound(NotFound):
    id = "usb-not-found"


class UsbGivenTwice(Conflict):
    id = "usb-given-twice"


class UsbWork:
    def __init__(self, rooms: Rooms, named: Named) -> None:
        self._rooms = rooms
        self._named = named

    async def list(self, name: str) -> tuple[UsbView, ...]:
        """Those of the machine that runs, and those of the next start."""
        owner = await self._named(name)
        ids = sorted({each.id for spec in owner.specs for each in spec.usb})
        return tuple(_view(owner, _device(owner, each)) for each in ids)

    async def add(self, name: str, wanted: NewUsb) -> UsbView:
        """Give a VM a device of the host, now and for all starts to come.

        Raises:
            UsbDeviceNotFound, UsbDeviceAmbiguous, UsbDeviceNotUsable: the host's device cannot be had.
            UsbDeviceInUse: a VM that runs has it.
            UsbGivenTwice, TooManyDevices, QmpRefused.
        """
        owner = await self._named(name)
        owner.admits(Verb.CHANGE)
        found = await asyncio.to_thread(find_usb, wanted.device)
        device = await owner.request(lambda: self._add(owner, wanted.device, found))
        return _view(owner, device)

    async def remove(self, name: str, device: str) -> UsbView:
        """Take a device away. Raises UsbNotFound."""
        owner = await self._named(name)
        owner.admits(Verb.CHANGE)
        gone = _device(owner, device)
        await owner.request(lambda: self._remove(owner, gone))
        return _view(owner, gone)

    # In the owner's task

    async def _add(self, owner: VmOwner, host: str, found: UsbHostDevice) -> UsbDevice:
        owner.admits(Verb.CHANGE)
        record, machine, before = owner.record, owner.machine, owner.record.spec
        device = UsbDevice(id=_free(owner), host=host.lower())
        if any(each.host in (found.model, found.place) for each in before.usb):
            raise UsbGivenTwice(
                f"VM {record.name!r} has the USB device {host!r} already",
                value=host,
                cure=f"See `holdfast usb list {record.name}`.",
            )
        await require_unused(self._rooms, record.id, found)

        def both(row: VmRow) -> None:
            set_spec(row, before.model_copy(update={"usb": (*before.usb, device)}))
            if machine is not None and row.running_spec:
                running = VmSpec.model_validate(row.running_spec)
                set_running(row, usb=(*running.usb, device))

        await owner.change(both, "vm.usb-added", {"id": record.id, "usb": device.id})
        if machine is not None:
            try:
                await _plug(machine, device, found)
            except BaseException:
                await asyncio.shield(self._take_back(owner, machine, before))
                raise
        return device

    async def _take_back(self, owner: VmOwner, machine: RunningMachine, before: VmSpec) -> None:
        await owner.change(lambda row: set_spec(row, before))
        owner.record = await settle_devices(self._rooms, owner.record, machine)

    async def _remove(self, owner: VmOwner, device: UsbDevice) -> None:
        owner.admits(Verb.CHANGE)
        spec, machine = owner.record.spec, owner.machine
        kept = spec.model_copy(update={"usb": tuple(each for each in spec.usb if each.id != device.id)})
        data = {"id": owner.record.id, "usb": device.id}
        await owner.change(lambda row: set_spec(row, kept), "vm.usb-removed", data)
        if machine is not None:
            await machine.usb.remove(device.id)
            owner.record = await settle_devices(self._rooms, owner.record, machine)


async def _plug(machine: RunningMachine, device: UsbDevice, found: UsbHostDevice) -> None:
    fd = await asyncio.to_thread(open_usb, found)
    try:
        await machine.usb.add(device.id, fd)
    finally:
        os.close(fd)


def _free(owner: VmOwner) -> str:
    taken = {each.id for spec in owner.specs for each in spec.usb}
    if len(taken) >= MAX_USB:
        raise TooManyDevices(
            f"VM {owner.record.name!r} has {len(taken)} USB devices, which is as many as a VM can have",
            value=len(taken),
            cure="Remove one of them first.",
        )
    return next(f"usb{number}" for number in range(MAX_USB) if f"usb{number}" not in taken)


def _device(owner: VmOwner, device: str) -> UsbDevice:
    for spec in owner.specs:
        for each in spec.usb:
            if each.id == device:
                return each
    name = owner.record.name
    raise UsbNotFound(
        f"VM {name!r} has no USB device {device[:32]!r}",
        value=device[:32],
        cure=f"See `holdfast usb list {name}`.",
    )


def _view(owner: VmOwner, device: UsbDevice) -> UsbView:
    running = owner.record.running_spec if owner.machine else None
    plugged = running is not None and any(each.id == device.id for each in running.usb)
    then = any(each.id == device.id for each in owner.record.spec.usb)
    note = "It comes with the next start." if then and running is not None and not plugged else ""
    return UsbView(id=device.id, device=device.host, plugged=plugged, after_next_start=then, note=note)
