"""The disks of VMs as the API asks for them: shown, and changed by short verbs and operations.

Everything that cannot work is refused here, before the first change; what may have changed meanwhile
is looked at again in the transaction that begins the operation, or in the owner's task.
"""

import asyncio
from typing import Any

from sqlalchemy.orm import Session

from holdfast.host.block_devices import BlockDevice, BlockDeviceInUse, look_at, number_of
from holdfast.host.space import NoSpace
from holdfast.machine.devices.ports import DISK_PORTS
from holdfast.machine.disk_plug import NotGrowableNow
from holdfast.spec.disk_requests import DiskAdd, DiskBusChange, DiskGrow, DiskMove, DiskView, IoLimitsChange
from holdfast.spec.errors import Conflict, InvalidInput
from holdfast.spec.operation import Operation
from holdfast.spec.pool import LOCAL
from holdfast.spec.units import MIB, format_size
from holdfast.spec.vm import Disk, DiskBus, VmSpec, VolumeFormat
from holdfast.spec.vm_requests import NewDisk
from holdfast.storage.images import require_stored
from holdfast.storage.pools.book import require_pools
from holdfast.vm import disk_moving, records
from holdfast.vm.admission import Verb
from holdfast.vm.disk_settling import specs_of
from holdfast.vm.disk_specs import (
    disk_of,
    free_id,
    named,
    view,
    with_update,
)
from holdfast.vm.disk_work import free_place
from holdfast.vm.layers import chain_to
from holdfast.vm.owner import VmOwner
from holdfast.vm.planning import Planner, require_volume
from holdfast.vm.records import VmRecord
from holdfast.vm.registry import VmChangedMeanwhile, VmRegistry
from holdfast.vm.rooms import Rooms


class BootDisk(Conflict):
    id = "boot-disk"


class DiskShrunk(InvalidInput):
    id = "disk-shrunk"


class DiskTooLarge(NoSpace):
    id = "disk-larger-than-storage"


class DiskAlreadyThere(Conflict):
    id = "disk-already-there"


class DeviceHasItsSize(Conflict):
    id = "device-has-its-size"


_OVERHEAD = 16 * MIB
"""Tables of the copies."""


class DiskWork:
    """Fits `api.services.Disks`."""

    def __init__(self, rooms: Rooms, registry: VmRegistry) -> None:
        self._rooms = rooms
        self._registry = registry
        self._planner = Planner(rooms)

    async def list(self, name: str) -> tuple[DiskView, ...]:
        """Those of the machine that runs and those of the next start, by their numbers."""
        owner = await self._registry.named(name)
        record, runs = owner.record, owner.machine is not None  # disks may go meanwhile
        ids = {disk.id for spec in records.own_specs(record) for disk in spec.disks}
        return tuple(
            [
                await self._of(record, disk, runs=runs)
                for disk in sorted(ids, key=lambda each: (len(each), each))
            ]
        )

    async def show(self, name: str, disk: str) -> DiskView:
        return await self._view(await self._registry.named(name), disk)

    async def _view(self, owner: VmOwner, disk: str) -> DiskView:
        return await self._of(owner.record, disk, runs=owner.machine is not None)

    async def _of(self, record: VmRecord, disk: str, *, runs: bool) -> DiskView:
        stored = await self._rooms.volumes.stored_size(record.name, named(record, disk))
        return view(record, disk, stored, runs=runs)

    # Long verbs

    async def add(self, name: str, request: DiskAdd, actor: str) -> Operation:
        """Raises the refusal of everything that cannot work."""
        owner = await self._registry.named(name)
        owner.admits(Verb.DISKS)
        disk_id = free_id(await specs_of(self._rooms, owner.record))
        disk, images = await self._planned(disk_id, request)
        DISK_PORTS.places(
            each.id for each in (*owner.record.spec.disks, disk) if each.bus is not DiskBus.SCSI
        )
        if owner.machine is not None:
            await free_place(owner, owner.machine, disk)
        wire = disk.model_dump(mode="json")
        params = {"disk": wire, "full_copies": images, "full_copy": request.full_copy}

        def also(session: Session) -> None:
            row = records.by_id(session, owner.record.id)
            if disk_of(VmSpec.model_validate(row.spec), disk.id):
                raise _changed_meanwhile(owner)
            require_stored(session, set(images.values()))
            require_pools(session, [disk.pool])

        return await self._registry.begin("disk.add", owner, Verb.DISKS, params, actor, also)

    async def _planned(self, disk_id: str, request: DiskAdd) -> tuple[Disk, dict[str, str]]:
        """The disk, and the image that it needs until it is recorded, by its id."""
        if request.device is not None:
            device = await asyncio.to_thread(look_at, request.device)
            await self._require_lone(device)
            disk = Disk(
                id=disk_id,
                volume=disk_id,
                format=VolumeFormat.RAW,
                size=device.size,
                bus=request.bus,
                device=device.path,
                limits=request.limits,
            )
            return disk, {}
        wanted = NewDisk(
            size=request.size,
            image=request.image,
            bus=request.bus,
            full_copy=request.full_copy,
            pool=request.pool,
        )
        disk, image = await self._planner.new_disk(disk_id, wanted)
        disk = disk.model_copy(update={"limits": request.limits})
        await self._require_capacity(disk.pool, disk.size)
        return disk, {disk_id: image.digest} if image else {}

    async def _require_lone(self, device: BlockDevice) -> None:
        """Also where the other VM is off, and under whatever name it has the device, or a part of it."""
        for record in await self._rooms.records.all():
            for disk in (disk for spec in records.own_specs(record) for disk in spec.disks):
                if disk.device is not None and number_of(disk.device) in device.shares:
                    raise BlockDeviceInUse(
                        f"{disk.device} is {disk.id} of VM {record.name!r}",
                        value=device.path,
                        cure=f"Remove it there first: `holdfast disk remove {record.name} {disk.id}`.",
                    )

    async def _require_capacity(self, pool: str | None, size: int) -> None:
        """A disk may promise more than is free, as others do, but not more than could ever be."""
        state = await self._rooms.pools.of(pool).state()
        if state.capacity is not None and size > state.capacity:
            raise DiskTooLarge(
                f"a disk of {format_size(size)} is larger than the {format_size(state.capacity)} of the"
                " storage it would be on",
                value=size,
                cure=f"Ask for less; {format_size(state.free or 0)} are free there.",
                detail={"capacity": state.capacity, "free": state.free},
            )

    async def move(self, name: str, disk: str, request: DiskMove, actor: str) -> Operation:
        """All of its layers to another pool, while the VM runs or while it does not."""
        owner = await self._registry.named(name)
        owner.admits(Verb.DISKS)
        found = named(owner.record, disk)
        require_volume(owner.record.name, found)
        target = self._rooms.pools.of(request.to)
        pool = target.name if target.name != LOCAL else None
        if pool == found.pool:
            raise DiskAlreadyThere(
                f"{disk} of VM {owner.record.name!r} lies in the pool {target.name!r} already",
                value=target.name,
                cure="Name another pool; see `holdfast pool list`.",
            )
        await self._rooms.volumes.require(owner.record.name, found)
        specs = await specs_of(self._rooms, owner.record)
        names = disk_moving.new_names(specs, disk)
        room = _OVERHEAD
        for layer in names:
            there = chain_to(specs, disk, layer)
            room += await self._rooms.volumes.layer_size(owner.record.name, there, layer)
        await self._rooms.volumes.require_room(pool, room)
        wire = found.model_dump(mode="json")
        params = {"disk_id": disk, "disk": wire, "pool": pool, "names": names}

        def also(session: Session) -> None:
            require_pools(session, [pool])

        return await self._registry.begin(disk_moving.KIND, owner, Verb.DISKS, params, actor, also)

    async def remove(self, name: str, disk: str, keep: bool, force: bool, actor: str) -> Operation:
        """`keep`: the volumes are set aside; `force`: also the first disk, and against a guest's will."""
        owner = await self._registry.named(name)
        owner.admits(Verb.DISKS)
        found = named(owner.record, disk)
        first = next(iter(owner.record.spec.disks), None)
        if first is not None and first.id == disk and (owner.machine is not None or not force):
            cure = (
                "Stop the VM first."
                if owner.machine is not None
                else f"If you mean it: `holdfast disk remove {owner.record.name} {disk} --force`."
            )
            raise BootDisk(
                f"{disk} is the first disk of VM {owner.record.name!r}, which it starts from",
                value=disk,
                cure=cure,
            )
        wire = found.model_dump(mode="json")
        params = {"disk_id": disk, "disk": wire, "keep": keep, "force": force}
        return await self._registry.begin("disk.remove", owner, Verb.DISKS, params, actor)

    async def grow(self, name: str, disk: str, request: DiskGrow, actor: str) -> Operation:
        owner = await self._registry.named(name)
        owner.admits(Verb.DISKS)
        found = named(owner.record, disk)
        if found.device is not None:
            raise DeviceHasItsSize(
                f"{disk} is the host's device {found.device}, whose size is its own",
                value=disk,
                cure="Give the VM another disk.",
            )
        if request.size < found.size:
            raise DiskShrunk(
                f"{disk} has {format_size(found.size)}; a disk only grows",
                value=request.size,
                cure=f"Ask for more than {format_size(found.size)}, or make a smaller disk and copy inside.",
            )
        await self._require_capacity(found.pool, request.size)
        plugged = owner.machine is not None and disk_of(owner.record.running_spec, disk)
        if plugged and found.bus is DiskBus.NVME:
            raise NotGrowableNow.of(disk)
        params = {"disk_id": disk, "size": request.size}
        return await self._registry.begin("disk.grow", owner, Verb.DISKS, params, actor)

    # Short verbs

    async def limit(self, name: str, disk: str, change: IoLimitsChange) -> DiskView:
        owner = await self._registry.named(name)
        owner.admits(Verb.DISKS)

        async def apply() -> None:
            owner.admits(Verb.DISKS)
            limits = change.applied(named(owner.record, disk).limits)
            if owner.machine is not None and disk_of(owner.record.running_spec, disk):
                await owner.machine.disks.limit(disk, limits)
            told = {"disk": disk, "limits": limits.model_dump(mode="json")}
            await owner.change(
                lambda row: records.change_both(row, with_update(disk, limits=limits)),
                "vm.disk-limited",
                told,
            )

        await owner.request(apply)
        return await self._view(owner, disk)

    async def change_bus(self, name: str, disk: str, request: DiskBusChange) -> DiskView:
        """What the guest sees it on, from the next start on."""
        owner = await self._registry.named(name)
        owner.admits(Verb.DISKS)

        async def apply() -> None:
            owner.admits(Verb.DISKS)
            named(owner.record, disk)
            change = with_update(disk, bus=request.bus)
            after = change(owner.record.spec)
            DISK_PORTS.places(each.id for each in after.disks if each.bus is not DiskBus.SCSI)
            told: dict[str, Any] = {"disk": disk, "bus": request.bus}
            await owner.change(lambda row: records.change_spec(row, change), "vm.disk-bus-changed", told)

        await owner.request(apply)
        return await self._view(owner, disk)


def _changed_meanwhile(owner: VmOwner) -> VmChangedMeanwhile:
    return VmChangedMeanwhile(
        f"the disks of VM {owner.record.name!r} were changed by somebody else just now",
        value=owner.record.name,
        cure="Look at them again, and ask for your change once more.",
    )
