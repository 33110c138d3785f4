"""Bringing a machine up, and taking down what stood beside it.

Everything prepared on the way is taken back by this module where a later step fails: leftovers of
an earlier machine first, then run-time folder, vTPM, ports, QEMU, and memory where some was saved.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from holdfast.host.files import in_memory, own, remove_tree
from holdfast.host.processes import Identity
from holdfast.machine.plan import MachineInputs
from holdfast.machine.running import RunningMachine
from holdfast.spec.attachment import (
    CdAttachment,
    FirmwareAttachment,
    NicAttachment,
    TapAttachment,
    TpmAttachment,
)
from holdfast.spec.host import AccelerationVerdict
from holdfast.spec.vm import Boot, KernelBoot, Nic, UefiBoot, UsbDevice, VmSpec
from holdfast.trust.firmware import choose_firmware
from holdfast.vm.attested_host import key_for_start
from holdfast.vm.disk_attachments import OpenedDisk, descriptors_of, open_disk
from holdfast.vm.memory_image import MemoryImage
from holdfast.vm.pending_keys import before_start
from holdfast.vm.records import VmRecord
from holdfast.vm.rooms import Rooms
from holdfast.vm.usb_devices import open_all


async def bring_up(
    rooms: Rooms, record: VmRecord, image: MemoryImage | None, verdict: AccelerationVerdict, machine_type: str
) -> RunningMachine:
    """A machine that stands before its first instruction, or, with `image`, where it was saved.

    On failure nothing of it is left, and the vTPM is what it was.
    """
    await take_down(rooms, record)
    if image is None:
        await before_start(rooms, record)
    try:
        return await _build(rooms, record, image, verdict, machine_type)
    except BaseException:
        await asyncio.shield(_take_back(rooms, record, image))
        raise


async def _take_back(rooms: Rooms, record: VmRecord, image: MemoryImage | None) -> None:
    await take_down(rooms, record)
    if image is not None and _has_tpm(_spec(record)):
        await rooms.vtpm.put_back(record.id, rooms.state.vm(record.name))


async def _build(
    rooms: Rooms, record: VmRecord, image: MemoryImage | None, verdict: AccelerationVerdict, machine_type: str
) -> RunningMachine:
    spec, folder, runtime = _spec(record), rooms.state.vm(record.name), rooms.state.vm_runtime(record.id)
    identity = rooms.identities.of(record.number)
    await asyncio.to_thread(_prepare_runtime, runtime, identity)
    ports: list[tuple[Nic, NicAttachment]] = []
    disks: list[OpenedDisk] = []
    usb: list[tuple[UsbDevice, int]] = []
    secrets: dict[str, int] = {}
    try:
        for disk in spec.disks:
            await rooms.volumes.grant(record.name, disk, identity)
            needed = await rooms.volumes.secrets(record.name, disk)
            secrets |= {name: in_memory(name, needed[name]) for name in needed.keys() - secrets.keys()}
        tpm = await _start_tpm(rooms, record, spec, identity, empty=image is not None)
        for nic in spec.nics:
            ports.append((nic, await rooms.ports.attach(record.id, record.name, nic)))
        for disk in spec.disks:
            disks.append(open_disk(rooms, record.name, disk, spec))
        usb = await open_all(rooms, record.id, spec)
        boot = spec.boot
        inputs = MachineInputs(
            vm_id=record.id,
            name=record.name,
            spec=spec,
            acceleration=verdict.acceleration,
            cpu_model=verdict.cpu_model,
            machine_type=machine_type,
            disks=tuple(disk.attachment for disk in disks),
            open_disks=tuple((disk.attachment.id, disk.fd) for disk in disks if disk.fd is not None),
            cds=await _cds(rooms, spec, folder),
            secrets=tuple(secrets.items()),
            nics=tuple(ports),
            usb=tuple(usb),
            firmware=_firmware(boot, folder) if isinstance(boot, UefiBoot) else None,
            tpm=tpm,
            runtime=runtime,
            console_log=folder / "console.log",
            kernel=await rooms.images.path(boot.kernel) if isinstance(boot, KernelBoot) else None,
            initrd=await _initrd(rooms, boot),
            incoming=image is not None,
        )
        machine = await rooms.machines.launch(
            inputs, identity, folder / "qemu.log", _fds(ports, disks, secrets, usb)
        )
    finally:
        for fd in _fds(ports, disks, secrets, usb):
            os.close(fd)
    await rooms.groups.place(machine.ref.pid, f"vm:{record.id}")
    if image is not None:
        try:
            await machine.memory.load(image.whole, lambda *_: None)
        except BaseException:
            await asyncio.shield(machine.kill())
            raise
    return machine


async def _initrd(rooms: Rooms, boot: Boot) -> Path | None:
    return await rooms.images.path(boot.initrd) if isinstance(boot, KernelBoot) and boot.initrd else None


def _fds(
    ports: list[tuple[Nic, NicAttachment]],
    disks: list[OpenedDisk],
    secrets: dict[str, int],
    usb: list[tuple[UsbDevice, int]],
) -> list[int]:
    """What QEMU inherits, and is closed here afterwards."""
    cards = descriptors(port for _, port in ports)
    return [*cards, *descriptors_of(disks), *secrets.values(), *(fd for _, fd in usb)]


async def _start_tpm(
    rooms: Rooms, record: VmRecord, spec: VmSpec, identity: Identity | None, empty: bool
) -> TpmAttachment | None:
    if not _has_tpm(spec):
        return None
    folder, runtime = rooms.state.vm(record.name), rooms.state.vm_runtime(record.id)
    key = await key_for_start(rooms, record)
    return await rooms.vtpm.start(record.id, folder, runtime, identity, empty=empty, guard_key=key)


async def settle_restore(rooms: Rooms, record: VmRecord) -> None:
    """The restored guest goes on: the vTPM state from before is of no more use."""
    if _has_tpm(_spec(record)):
        await rooms.vtpm.settle(rooms.state.vm(record.name))


async def take_down(rooms: Rooms, record: VmRecord) -> None:
    """End every process of this VM that is left, and remove what stood beside it. Safe to repeat."""
    for marked in await asyncio.to_thread(rooms.processes.find, f"vm:{record.id}"):
        await rooms.processes.end(marked.ref, grace=2.0 if marked.role == "swtpm" else 0.0)
    await rooms.volumes.released(record.name, _spec(record).disks)
    for nic in _spec(record).nics:
        with contextlib.suppress(OSError):
            await rooms.ports.detach(record.id, nic)
    await rooms.groups.remove(f"vm:{record.id}")
    await asyncio.to_thread(remove_tree, rooms.state.vm_runtime(record.id))


def _spec(record: VmRecord) -> VmSpec:
    """A machine under way keeps what it was built from, whatever was changed since."""
    return record.running_spec or record.spec


def _has_tpm(spec: VmSpec) -> bool:
    return isinstance(spec.boot, UefiBoot) and spec.boot.tpm


def _prepare_runtime(runtime: Path, identity: Identity | None) -> None:
    remove_tree(runtime)
    runtime.mkdir(mode=0o700, parents=True)
    if identity:
        own(runtime, identity.uid, identity.gid)


def _firmware(boot: UefiBoot, folder: Path) -> FirmwareAttachment:
    build = choose_firmware(boot.secure_boot)
    return FirmwareAttachment(
        code=build.code, variables=folder / "firmware" / "variables.fd", smm=build.requires_smm
    )


async def _cds(rooms: Rooms, spec: VmSpec, folder: Path) -> tuple[CdAttachment, ...]:
    drives = [
        CdAttachment(id=drive.id, path=await rooms.images.path(drive.image) if drive.image else None)
        for drive in spec.cd_drives
    ]
    seed = folder / "seed.iso"
    if spec.cloud_init is not None:
        drives.append(CdAttachment(id="seed", path=seed))
    return tuple(drives)


def descriptors(ports: Iterable[NicAttachment]) -> list[int]:
    """What QEMU is given copies of, and the caller then closes."""
    fds = []
    for port in ports:
        if isinstance(port, TapAttachment):
            fds += [port.fd, *([port.vhost_fd] if port.vhost_fd is not None else [])]
    return fds
