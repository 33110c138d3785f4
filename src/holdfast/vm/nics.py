"""NICs of a VM: added, removed and moved, while it runs and while it does not.

    add:     record (both specs) ──▶ TAP ──▶ QEMU                 a failure takes all of it back
    remove:  record (next start) ──▶ guest lets go ──▶ TAP ──▶ record (running)
    move:    TAP ──▶ record

So the record of the running machine never lacks a card that QEMU has; what it names too much after a
crash, `device_settling` drops.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from holdfast.catalog.tables import VmRow
from holdfast.machine.hotplug import UNPLUG_SECONDS, UnplugIgnored, UnplugRefused
from holdfast.machine.layout import free_nic_ports, with_layout
from holdfast.machine.running import RunningMachine
from holdfast.qmp.agent_devices import station_addresses
from holdfast.spec.devices import NicChange, NicDone, NicView
from holdfast.spec.errors import Conflict, NotFound
from holdfast.spec.vm import Nic, VmSpec
from holdfast.spec.vm_requests import NewNic
from holdfast.vm.admission import Verb
from holdfast.vm.device_settling import nic_of, set_running, settle_devices
from holdfast.vm.guest_sight import asked, patience
from holdfast.vm.owner import VmOwner
from holdfast.vm.planning import Planner
from holdfast.vm.records import set_spec
from holdfast.vm.rooms import Rooms
from holdfast.vm.start import descriptors

Named = Callable[[str], Awaitable[VmOwner]]
"""From a VM's name or id to its owner."""

_FORCED = 3.0  # seconds that a guest is given before its card is cut off


class NicNotFound(NotFound):
    id = "nic-not-found"


class PortsTaken(Conflict):
    id = "ports-taken"


class NicWork:
    def __init__(self, rooms: Rooms, named: Named) -> None:
        self._rooms = rooms
        self._named = named
        self._planner = Planner(rooms)

    async def list(self, name: str) -> tuple[NicView, ...]:
        """Those of the machine that runs, and those of the next start."""
        owner = await self._named(name)
        seen = await asked(owner, station_addresses)
        ids = {nic.id: None for spec in owner.specs for nic in spec.nics}
        return tuple(
            NicView(**_view(owner, nic, None if seen is None else _card(owner, nic).mac in seen))
            for nic in sorted(ids, key=lambda each: (len(each), each))
        )

    async def add(self, name: str, wanted: NewNic) -> NicDone:
        """One more NIC, now and for all starts to come.

        Raises:
            PortsTaken: the machine that runs has no port left.
            TooManyDevices, MacTaken, SwitchMissing, NetworkFailed, NetworkNotPermitted, QmpRefused.
        """
        owner = await self._named(name)
        owner.admits(Verb.CHANGE)
        nic = await owner.request(lambda: self._add(owner, wanted))
        return await self._done(owner, nic, wanted=True)

    async def remove(self, name: str, nic: str, force: bool) -> NicDone:
        """One NIC less. `force` frees the host's side where the guest does not let go of it.

        Raises:
            NicNotFound: there is none of that id.
            UnplugIgnored, UnplugRefused: the guest keeps it; it will be gone at the next start.
        """
        owner = await self._named(name)
        owner.admits(Verb.CHANGE)
        card = _card(owner, nic)
        await owner.request(lambda: self._remove(owner, card, force))
        return await self._done(owner, card, wanted=False)

    async def change(self, name: str, nic: str, change: NicChange) -> NicDone:
        """Move a NIC to another switch or VLAN, now where it can be, else at the next start.

        Raises NicNotFound, MacTaken, SwitchMissing, NetworkFailed, NetworkNotPermitted.
        """
        owner = await self._named(name)
        owner.admits(Verb.CHANGE)
        note = await owner.request(lambda: self._change(owner, nic, change))
        done = await self._done(owner, _card(owner, nic), wanted=True)
        return done.model_copy(update={"note": note or done.note})

    # In the owner's task

    async def _add(self, owner: VmOwner, wanted: NewNic) -> Nic:
        owner.admits(Verb.CHANGE)
        nic, machine, before = await self._planner.nic(owner.record, wanted), owner.machine, owner.record
        if machine is None:
            await owner.change(lambda row: _put(row, nic), "vm.nic-added", {"nic": nic.id})
            return nic
        running = with_layout(before.running_spec or before.spec)
        _require_port(before.name, running, nic)

        def both(row: VmRow) -> None:
            _put(row, nic)
            set_running(row, nics=(*running.nics, nic), layout=running.layout)

        await owner.change(both)
        try:
            await self._plug(owner, machine, nic)
        except BaseException:
            await asyncio.shield(self._take_back(owner, machine, nic))
            raise
        await self._rooms.events.emit("vm.nic-added", before.name, {"id": before.id, "nic": nic.id})
        return nic

    async def _plug(self, owner: VmOwner, machine: RunningMachine, nic: Nic) -> None:
        attachment = await self._rooms.ports.attach(owner.record.id, owner.record.name, nic)
        try:
            await machine.nics.add(nic, attachment)
        finally:
            for fd in descriptors([attachment]):
                os.close(fd)

    async def _take_back(self, owner: VmOwner, machine: RunningMachine, nic: Nic) -> None:
        await owner.change(lambda row: _drop(row, nic.id))
        owner.record = await settle_devices(self._rooms, owner.record, machine)

    async def _remove(self, owner: VmOwner, nic: Nic, force: bool) -> None:
        owner.admits(Verb.CHANGE)
        record, machine = owner.record, owner.machine
        if nic_of(record.spec, nic.id):
            await owner.change(lambda row: _drop(row, nic.id), "vm.nic-removed", {"nic": nic.id})
        if machine is not None and nic_of(record.running_spec, nic.id):
            await self._unplug(owner, machine, nic, force)
        await self._rooms.ports.forget(nic)

    async def _unplug(self, owner: VmOwner, machine: RunningMachine, nic: Nic, force: bool) -> None:
        limit = patience(owner, _FORCED if force else UNPLUG_SECONDS)
        try:
            await machine.nics.remove(nic.id, limit)
        except (UnplugIgnored, UnplugRefused) as error:
            if not force:
                raise _kept(owner.record.name, nic.id, error) from error
            await machine.nics.cut(nic.id)
            await self._rooms.ports.cut(owner.record.id, nic)
            await owner.change(lambda row: _mark_cut(row, nic.id), "vm.nic-cut", {"nic": nic.id})
            return
        owner.record = await settle_devices(self._rooms, owner.record, machine)

    async def _change(self, owner: VmOwner, nic_id: str, change: NicChange) -> str:
        owner.admits(Verb.CHANGE)
        record = owner.record
        card = nic_of(record.spec, nic_id)
        if card is None:
            raise _missing(record.name, nic_id)
        wanted = card.model_copy(update=_wanted(change))
        if wanted.mac != card.mac:
            await self._planner.require_free_mac(wanted.mac)
        user_mode = await self._rooms.ports.is_user_mode(wanted)
        now = nic_of(record.running_spec, nic_id) if owner.machine else None
        if now is None:
            await owner.change(lambda row: _replace(row, wanted), "vm.nic-changed", {"nic": nic_id})
            return ""
        place = {"switch": wanted.switch, "vlan": wanted.vlan, "unplugged": wanted.unplugged}
        moved = now.model_copy(update=place)
        if moved != now and (user_mode or await self._rooms.ports.is_user_mode(now)):
            await owner.change(lambda row: _replace(row, wanted), "vm.nic-changed", {"nic": nic_id})
            return (
                "A card cannot change between the user-mode network and a switch while the VM runs: it moves"
                " at the next start. To have it now, remove it and add another."
            )
        if moved != now:
            await self._move(owner, now, moved, wanted)
        else:
            await owner.change(lambda row: _replace(row, wanted), "vm.nic-changed", {"nic": nic_id})
        return "" if wanted.mac == now.mac else "The MAC address changes at the next start."

    async def _move(self, owner: VmOwner, now: Nic, moved: Nic, wanted: Nic) -> None:
        record, machine = owner.record, owner.machine

        def both(row: VmRow) -> None:
            _replace(row, wanted)
            running = VmSpec.model_validate(row.running_spec)
            set_running(row, nics=_replaced(running, moved))

        try:
            await self._rooms.ports.move(record.id, record.name, moved)
            await owner.change(both, "vm.nic-changed", {"nic": now.id})
        except BaseException:
            await asyncio.shield(self._rooms.ports.move(record.id, record.name, now))
            raise
        if machine is not None:
            await machine.nics.renew_link(now.id)

    # What is told of it

    async def _done(self, owner: VmOwner, nic: Nic, wanted: bool) -> NicDone:
        seen = await asked(owner, station_addresses, lambda found: (nic.mac in found) is wanted)
        view = _view(owner, nic.id, None if seen is None else nic.mac in seen, nic)
        running = owner.record.running_spec if owner.machine else None
        return NicDone(**view, free_ports=len(free_nic_ports(running)) if running else None)


def _card(owner: VmOwner, nic: str) -> Nic:
    for spec in reversed(owner.specs):
        if found := nic_of(spec, nic):
            return found
    raise _missing(owner.record.name, nic)


def _missing(name: str, nic: str) -> NicNotFound:
    return NicNotFound(
        f"VM {name!r} has no NIC {nic[:32]!r}", value=nic[:32], cure=f"See `holdfast nic list {name}`."
    )


def _require_port(name: str, running: VmSpec, nic: Nic) -> None:
    free = free_nic_ports(running)
    if int(nic.id.removeprefix("nic")) not in free:
        raise PortsTaken(
            f"the ports for NICs of VM {name!r} are all taken while it runs",
            value=len(running.nics),
            cure="Remove one of its NICs, or stop it: the next start makes room for more.",
        )


def _kept(name: str, nic: str, error: UnplugIgnored | UnplugRefused) -> UnplugIgnored | UnplugRefused:
    did = "refused to" if isinstance(error, UnplugRefused) else "did not"
    return type(error)(
        f"the guest of VM {name!r} {did} let go of {nic}: the card is still in its machine",
        value=nic,
        cure="It will be gone at the next start. Try again once the guest has started, or cut it off at once"
        f" with `holdfast nic remove {name} {nic} --force`.",
        detail={"plugged": True, "after_next_start": False},
    )


def _view(owner: VmOwner, nic: str, seen: bool | None, gone: Nic | None = None) -> dict[str, Any]:
    record = owner.record
    now = nic_of(record.running_spec, nic) if owner.machine else None
    then = nic_of(record.spec, nic)
    card = now or then or gone
    if card is None:
        raise _missing(record.name, nic)
    return {
        "id": nic,
        "plugged": now is not None,
        "after_next_start": then is not None,
        "guest_sees": seen,
        "note": _note(now, then, running=owner.machine is not None),
        "mac": card.mac,
        "switch": card.switch,
        "vlan": card.vlan,
    }


def _note(now: Nic | None, then: Nic | None, running: bool) -> str:
    card = now or then
    if card is not None and card.unplugged:
        return "It is in no network: its VM was made to be isolated."
    if now is not None and now.cut:
        return (
            "It is cut off from the network. The guest has yet to let go of it, at its restart at the latest."
        )
    if now is not None and then is None:
        return "The guest has yet to let go of it; it is gone at the next start."
    if now is None and then is not None and running:
        return "It comes with the next start."
    return ""


def _wanted(change: NicChange) -> dict[str, Any]:
    update: dict[str, Any] = {}
    if change.switch is not None:
        update |= {"switch": change.switch or None, "unplugged": False}
    if change.vlan is not None:
        update["vlan"] = change.vlan or None
    if change.mac is not None:
        update["mac"] = change.mac
    return update


def _replaced(spec: VmSpec, nic: Nic) -> tuple[Nic, ...]:
    return tuple(nic if each.id == nic.id else each for each in spec.nics)


def _update(row: VmRow, nics: Callable[[VmSpec], tuple[Nic, ...]]) -> None:
    spec = VmSpec.model_validate(row.spec)
    set_spec(row, spec.model_copy(update={"nics": nics(spec)}))


def _put(row: VmRow, nic: Nic) -> None:
    _update(row, lambda spec: (*spec.nics, nic))


def _drop(row: VmRow, nic: str) -> None:
    _update(row, lambda spec: tuple(each for each in spec.nics if each.id != nic))


def _replace(row: VmRow, nic: Nic) -> None:
    _update(row, lambda spec: _replaced(spec, nic))


def _mark_cut(row: VmRow, nic: str) -> None:
    running = VmSpec.model_validate(row.running_spec)
    card = nic_of(running, nic)
    if card:
        set_running(row, nics=_replaced(running, card.model_copy(update={"cut": True})))
