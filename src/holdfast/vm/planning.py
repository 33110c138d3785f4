"""From a request to a complete plan, refused before the first change where it cannot work.

Nothing here changes anything: names are resolved to digests, ids and MAC addresses are chosen, and
what the host lacks is found out now rather than in the middle.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.host.block_devices import look_at
from holdfast.host.space import MemoryShort, memory_figures, require_memory, require_space
from holdfast.machine.devices.ports import TooManyDevices
from holdfast.network.addresses import new_mac
from holdfast.spec.errors import Conflict, InvalidInput, Unsupported
from holdfast.spec.ids import new_id
from holdfast.spec.image import Image, ImageKind
from holdfast.spec.pool import LOCAL
from holdfast.spec.units import MIB, format_size
from holdfast.spec.vm import (
    MAX_NICS,
    CdDrive,
    CloudInit,
    Disk,
    GuestOs,
    KernelBoot,
    Nic,
    UefiBoot,
    VmSpec,
    VmState,
    VolumeFormat,
)
from holdfast.spec.vm_requests import NewDisk, NewNic, VmChange, VmClone, VmCreate
from holdfast.storage.images import ImageNotFound
from holdfast.storage.pools.pool import require_room
from holdfast.trust.firmware import choose_firmware
from holdfast.trust.variables import read_summary
from holdfast.vm.attested_host import require_guardable
from holdfast.vm.cloud_init import check_cloud_init
from holdfast.vm.disk_specs import require_movable_memory
from holdfast.vm.records import VmRecord, tpm_identity
from holdfast.vm.rooms import Rooms

DRIVER_DISC = "virtio-win"
"""Name of the image with Windows' drivers, as `image pull` calls it."""

_VM_OVERHEAD = 64 * MIB
"""Room that a new VM needs beside its disks' data: variable store, vTPM, logs, first writes."""


class WrongImageKind(InvalidInput):
    id = "wrong-image-kind"


class DiskTooSmall(InvalidInput):
    id = "disk-smaller-than-image"


class TooManyCpus(Unsupported):
    id = "too-many-cpus"


class VmFolderExists(Conflict):
    id = "vm-folder-exists"


class MacTaken(Conflict):
    id = "mac-taken"


class NoSecureBootKeys(Unsupported):
    id = "no-secure-boot-keys"


class NoCdDrive(Conflict):
    id = "no-cd-drive"


class VmIsTemplate(Conflict):
    id = "vm-is-template"


class TemplateNotOff(Conflict):
    id = "template-not-off"


class DiskOnDevice(Conflict):
    id = "disk-on-device"


class NoTpmToKeep(InvalidInput):
    id = "no-tpm-to-keep"


@dataclass(frozen=True)
class VmPlan:
    """A VM that can be made: its specification, and where each disk's content comes from."""

    vm_id: str
    spec: VmSpec
    full_copies: dict[str, str]
    """Disk id to digest of the image that is copied whole into it."""
    start: bool = False

    def params(self) -> dict[str, Any]:
        """The JSON that a procedure is given."""
        return {"vm": self.vm_id, "full_copies": self.full_copies, "start": self.start}


class Planner:
    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def plan(self, request: VmCreate) -> VmPlan:
        """Raises a refusal of its own type for everything that cannot work on this host."""
        await self.require_free_name(request.name)
        await asyncio.to_thread(self._require_host, request.cpus, request.memory)
        boot: UefiBoot | KernelBoot = UefiBoot(secure_boot=request.secure_boot, tpm=request.tpm)
        if request.kernel is not None:
            boot = KernelBoot(
                kernel=(await self._image(request.kernel.kernel, ImageKind.KERNEL)).digest,
                initrd=(await self._image(request.kernel.initrd, ImageKind.INITRD)).digest
                if request.kernel.initrd
                else None,
                append=request.kernel.append,
            )
        else:
            await asyncio.to_thread(choose_firmware, request.secure_boot)
        disks: list[Disk] = []
        full_copies: dict[str, str] = {}
        for index, wanted in enumerate(request.disks):
            disk, image = await self._disk(f"disk{index}", wanted)
            disks.append(disk)
            if image and wanted.full_copy:
                full_copies[disk.id] = image.digest
        await self._rooms.volumes.require_free(request.name, disks)
        cloud_init = request.cloud_init
        if cloud_init is not None:
            check_cloud_init(cloud_init)
        if cloud_init is None and request.os is GuestOs.LINUX and any(disk.image for disk in request.disks):
            cloud_init = CloudInit()
        spec = VmSpec(
            cpus=request.cpus,
            memory=request.memory,
            os=request.os,
            boot=boot,
            disks=tuple(disks),
            cd_drives=await self._drives(request),
            nics=await self.nics(request.nics),
            cloud_init=cloud_init,
            guest_agent=request.guest_agent,
        )
        return VmPlan(new_id(), spec, full_copies, request.start)

    async def plan_clone(self, source: VmRecord, request: VmClone) -> VmPlan:
        """A VM like `source`, with addresses of its own and, unless told to keep it, a TPM of its own."""
        await self.require_free_name(request.name)
        if request.same_tpm and tpm_identity(source.spec, source.id) is None:
            raise NoTpmToKeep(
                f"VM {source.name!r} has no vTPM whose identity could be kept",
                value=source.name,
                cure="Leave out --same-tpm.",
            )
        await self._require_room(None, _VM_OVERHEAD)
        for disk in source.spec.disks:
            require_volume(source.name, disk)
            await self._require_room(disk.pool, await self._rooms.volumes.stored_size(source.name, disk))
        nics = await self.nics([NewNic(switch=nic.switch, vlan=nic.vlan) for nic in source.spec.nics])
        nics = tuple(
            new.model_copy(update={"unplugged": nic.unplugged})
            for new, nic in zip(nics, source.spec.nics, strict=True)
        )
        disks = tuple(_cloned(disk, request.full_copy) for disk in source.spec.disks)
        await self._rooms.volumes.require_free(request.name, disks)
        spec = source.spec.model_copy(update={"nics": nics, "disks": disks, "usb": (), "template": False})
        if isinstance(spec.boot, UefiBoot):
            identity = tpm_identity(source.spec, source.id) if request.same_tpm else None
            spec = spec.model_copy(update={"boot": spec.boot.model_copy(update={"tpm_identity": identity})})
        return VmPlan(new_id(), spec, {})

    async def changed(self, record: VmRecord, change: VmChange) -> VmSpec:
        """The specification after a change."""
        spec = record.spec
        update: dict[str, Any] = {}
        if change.cpus is not None or change.memory is not None:
            update = {"cpus": change.cpus or spec.cpus, "memory": change.memory or spec.memory}
            await asyncio.to_thread(self._require_host, update["cpus"], update["memory"])
        if change.secure_boot is not None:
            update["boot"] = await self._changed_boot(record, change.secure_boot)
        if change.guest_agent is not None:
            update["guest_agent"] = change.guest_agent
        if change.template is not None:
            if change.template and record.state not in (VmState.OFF, VmState.FAILED):
                raise TemplateNotOff(
                    f"VM {record.name!r} is {record.state}; only a VM that is off becomes a template",
                    value=str(record.state),
                    cure="Stop the VM first.",
                )
            update["template"] = change.template
        if change.require_attested_host is not None:
            if change.require_attested_host != spec.require_attested_host:
                require_guardable(record)
            update["require_attested_host"] = change.require_attested_host
        if change.iso is not None:
            update["cd_drives"] = await self._changed_drive(record, change.iso)
        return spec.model_copy(update=update)

    async def _changed_boot(self, record: VmRecord, secure_boot: bool) -> UefiBoot:
        """Secure Boot goes by the firmware build; it needs keys in the VM's own variable store."""
        boot = record.spec.boot
        if isinstance(boot, UefiBoot):
            store = self._rooms.state.vm(record.name) / "firmware" / "variables.fd"
            if not secure_boot or (await asyncio.to_thread(read_summary, store)).secure_boot:
                await asyncio.to_thread(choose_firmware, secure_boot)
                return boot.model_copy(update={"secure_boot": secure_boot})
        raise NoSecureBootKeys(
            f"VM {record.name!r} was made without Secure Boot: its firmware holds no keys for it",
            value=record.name,
            cure="Make a new VM; Secure Boot is on by default.",
        )

    async def _changed_drive(self, record: VmRecord, iso: str) -> tuple[CdDrive, ...]:
        digest = await self._iso(iso) if iso else None
        drives = record.spec.cd_drives
        plain = record.spec.os is GuestOs.WINDOWS or record.state is VmState.SAVED
        if not drives and record.running_spec is not None and plain:
            raise NoCdDrive(
                f"VM {record.name!r} has no CD drive, and its machine cannot be given one now",
                value=iso,
                cure="Stop the VM; the drive is added at the change and is there at the next start.",
            )
        return (CdDrive(id="cd0", image=digest), *drives[1:])

    async def medium(self, spec: VmSpec) -> Path | None:
        """The file in the first CD drive."""
        digest = spec.cd_drives[0].image
        return await self._rooms.images.path(digest) if digest else None

    async def nic(self, record: VmRecord, wanted: NewNic) -> Nic:
        """One more NIC for a VM that exists. Raises TooManyDevices, MacTaken, SwitchMissing."""
        taken = {nic.id for spec in (record.spec, record.running_spec) if spec for nic in spec.nics}
        if len(record.spec.nics) >= MAX_NICS:
            raise TooManyDevices(
                f"VM {record.name!r} has {MAX_NICS} NICs, which is as many as a VM can have",
                value=MAX_NICS,
                cure="Remove one of them first.",
            )
        free = next(f"nic{number}" for number in range(len(taken) + 1) if f"nic{number}" not in taken)
        (nic,) = await self.nics([wanted])
        return nic.model_copy(update={"id": free})

    async def require_free_mac(self, mac: str) -> None:
        """Raises MacTaken."""
        await self.nics([NewNic(mac=mac)])

    async def require_free_name(self, name: str) -> None:
        """No folder of that name may be in the way. Raises VmFolderExists."""
        taken = {entry.name.lower() for entry in self._rooms.state.vms.iterdir()}
        if name.lower() in taken and not await self._known(name):
            folder = self._rooms.state.vm(name)
            raise VmFolderExists(
                f"a folder {str(folder)!r} exists that belongs to no VM",
                value=str(folder),
                cure="Move it away, or choose another name.",
            )

    async def _known(self, name: str) -> bool:
        return any(record.name.lower() == name.lower() for record in await self._rooms.records.all())

    async def require_startable(self, record: VmRecord) -> None:
        """Memory enough now, every image there. Raises the refusal."""
        if record.spec.template:
            raise VmIsTemplate(
                f"VM {record.name!r} is a template, which is cloned and never started",
                value=record.name,
                cure=f"Clone it: `holdfast vm clone {record.name} NAME`; or take the mark away:"
                f" `holdfast vm set {record.name} --no-template`.",
            )
        await self._rooms.records.require_lone_identity(record)
        await asyncio.to_thread(require_memory, record.spec.memory)
        for disk in record.spec.disks:
            await self._rooms.volumes.require(record.name, disk)
            if disk.device is not None:
                await asyncio.to_thread(look_at, disk.device)

    async def require_savable(self, record: VmRecord) -> None:
        """Raises MemoryNotMovable, NoSpace."""
        require_movable_memory(record)
        spec = record.running_spec or record.spec
        await asyncio.to_thread(require_space, self._rooms.state.vms, spec.memory + _VM_OVERHEAD)

    def _require_host(self, cpus: int, memory: int) -> None:
        total, _ = memory_figures()
        if memory > total:
            raise MemoryShort(
                f"{format_size(memory)} of memory are more than the {format_size(total)} this host has",
                value=memory,
                cure="Ask for less memory.",
            )
        most = self._rooms.machines.max_cpus
        if cpus > most:
            raise TooManyCpus(
                f"{cpus} CPUs are more than the {most} that this host's QEMU can give a VM",
                value=cpus,
                cure=f"Ask for {most} at most.",
            )

    async def _image(self, name: str, kind: ImageKind) -> Image:
        image = await self._rooms.images.get(name)
        if image.kind is not kind:
            raise WrongImageKind(
                f"{name!r} is an image of kind {image.kind}; one of kind {kind} is needed here",
                value=name,
                cure="See `holdfast image list`.",
            )
        return image

    async def _iso(self, name: str) -> str:
        return (await self._image(name, ImageKind.ISO)).digest

    async def _drives(self, request: VmCreate) -> tuple[CdDrive, ...]:
        """The disc asked for; for Windows, which reads no virtio by itself, its drivers in a second drive."""
        disc = await self._iso(request.iso) if request.iso else None
        if request.os is GuestOs.WINDOWS:
            with contextlib.suppress(ImageNotFound):
                drivers = await self._rooms.images.get(DRIVER_DISC)
                if drivers.kind is ImageKind.ISO:
                    return (CdDrive(id="cd0", image=disc), CdDrive(id="cd1", image=drivers.digest))
        return (CdDrive(id="cd0", image=disc),) if disc else ()

    async def new_disk(self, disk_id: str, wanted: NewDisk) -> tuple[Disk, Image | None]:
        """A disk with this id, and the image that it comes from. Raises the refusal."""
        return await self._disk(disk_id, wanted)

    async def _disk(self, disk_id: str, wanted: NewDisk) -> tuple[Disk, Image | None]:
        image = await self._image(wanted.image, ImageKind.DISK) if wanted.image else None
        size = wanted.size or (image.virtual_size if image else 0)
        if image and size < image.virtual_size:
            raise DiskTooSmall(
                f"a disk of {format_size(size)} cannot hold image {wanted.image!r}"
                f" of {format_size(image.virtual_size)}",
                value=size,
                cure=f"Ask for {format_size(image.virtual_size)} or more.",
            )
        pool = self._rooms.pools.of(wanted.pool)
        room = image.stored_size if image and wanted.full_copy else 0
        await self._require_room(None, _VM_OVERHEAD)
        await self._require_room(wanted.pool, room)
        base = image.digest if image and not wanted.full_copy else None
        disk = Disk(
            id=disk_id,
            volume=disk_id,
            pool=pool.name if pool.name != LOCAL else None,
            format=VolumeFormat.QCOW2 if base else pool.format,
            size=size,
            bus=wanted.bus,
            image=base,
        )
        return disk, image

    async def _require_room(self, pool: str | None, room: int) -> None:
        """Raises PoolNotFound, PoolVanished, NoSpace."""
        if pool is None:
            await asyncio.to_thread(require_space, self._rooms.state.vms, room)
        else:
            await require_room(self._rooms.pools.of(pool), room)

    async def nics(self, wanted: Iterable[NewNic]) -> tuple[Nic, ...]:
        """With addresses that no other VM has. Raises SwitchMissing, MacTaken."""
        taken = {
            nic.mac: record.name
            for record in await self._rooms.records.all()
            for spec in (record.spec, record.running_spec)
            if spec is not None
            for nic in spec.nics
        }
        nics: list[Nic] = []
        for index, new in enumerate(wanted):
            if new.switch is not None:
                await self._rooms.switches.get(new.switch)
            mac = new.mac.lower() if new.mac else _free_mac(taken)
            if mac in taken:
                raise MacTaken(
                    f"the MAC address {mac} is already that of VM {taken[mac]!r}",
                    value=mac,
                    cure="Leave it out to get a free one.",
                )
            taken[mac] = "this one"
            nics.append(Nic(id=f"nic{index}", mac=mac, switch=new.switch, vlan=new.vlan))
        return tuple(nics)


def require_volume(vm_name: str, disk: Disk) -> None:
    """Pass where a disk has volumes that can be copied and laid over. Raises DiskOnDevice."""
    if disk.device is not None:
        raise DiskOnDevice(
            f"{disk.id} of VM {vm_name!r} is the host's device {disk.device}, of which there is no other",
            value=disk.id,
            cure=f"Remove it first: `holdfast disk remove {vm_name} {disk.id}`.",
        )


def _cloned(disk: Disk, full_copy: bool) -> Disk:
    """The disk of a clone: one volume, which is thin only where the source's is one over an image."""
    whole = full_copy or bool(disk.below) or disk.origin is not None
    update: dict[str, Any] = {"volume": disk.id, "below": ()}
    return disk.model_copy(update=update | ({"image": None, "origin": None} if whole else {}))


def _free_mac(taken: Iterable[str]) -> str:
    return next(mac for mac in iter(new_mac, "") if mac not in taken)
