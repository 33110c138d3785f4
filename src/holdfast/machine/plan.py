"""From a VM's specification and what the rooms prepared to QEMU's arguments; pure."""

from dataclasses import dataclass
from pathlib import Path

from holdfast.machine.devices.board import board, clock, memory, processor
from holdfast.machine.devices.drives import cd_drive, disk
from holdfast.machine.devices.nics import nic
from holdfast.machine.devices.quoting import quoted
from holdfast.spec.attachment import (
    CdAttachment,
    DiskAttachment,
    FirmwareAttachment,
    NicAttachment,
    TpmAttachment,
)
from holdfast.spec.vm import Acceleration, GuestOs, KernelBoot, Nic, VmSpec


@dataclass(frozen=True)
class MachineInputs:
    vm_id: str
    name: str
    spec: VmSpec
    acceleration: Acceleration
    machine_type: str
    """A versioned one (`pc-q35-10.0`), so that saved memory fits the machine it returns to."""
    runtime: Path
    """Folder of the sockets; QEMU's own user writes to it."""
    console_log: Path
    cpu_model: str = ""
    """Empty: what fits the acceleration."""
    monitor_fd: int = -1
    """Listening UNIX socket on which QEMU serves its monitor."""
    disks: tuple[DiskAttachment, ...] = ()
    cds: tuple[CdAttachment, ...] = ()
    nics: tuple[tuple[Nic, NicAttachment], ...] = ()
    firmware: FirmwareAttachment | None = None
    tpm: TpmAttachment | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    incoming: bool = False


def arguments(inputs: MachineInputs) -> tuple[str, ...]:
    """QEMU's arguments after the program's name. The VM starts paused."""
    spec, windows = inputs.spec, inputs.spec.os is GuestOs.WINDOWS
    parts = ["-nodefaults", "-no-user-config", "-S", "-msg", "timestamp=on", "-uuid", inputs.vm_id]
    parts += ["-name", f"guest={quoted(inputs.name)},debug-threads=on"]
    # A guest that powers off stays, so that its end is never mistaken for a crash.
    parts += ["-action", "shutdown=pause,panic=none"]
    parts += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    parts += board(inputs.machine_type, inputs.acceleration, inputs.firmware)
    parts += (
        processor(spec.cpus, inputs.acceleration, spec.os, inputs.cpu_model)
        + memory(spec.memory)
        + clock(spec.os)
    )
    parts += ["-chardev", f"socket,id=monitor,fd={inputs.monitor_fd},server=on,wait=off"]
    parts += ["-mon", "chardev=monitor,mode=control"]
    parts += _consoles(inputs)
    for index, (card, attachment) in enumerate(inputs.nics):
        parts += nic(index, card, attachment)
    parts += ["-device", "virtio-scsi-pci,id=scsi0"]
    for index, drive in enumerate(inputs.disks):
        parts += disk(index, drive)
    for index, cd in enumerate(inputs.cds):
        parts += cd_drive(index, cd, windows)
    parts += _tpm(inputs.tpm) + _kernel(inputs)
    return (*parts, *(("-incoming", "defer") if inputs.incoming else ()))


def _consoles(inputs: MachineInputs) -> list[str]:
    log = quoted(inputs.console_log)
    socket = "server=on,wait=off"
    path = quoted(inputs.runtime / "console.sock")
    console = f"socket,id=console,path={path},{socket},logfile={log},logappend=on"
    parts = ["-chardev", console, "-serial", "chardev:console"]
    parts += ["-device", "virtio-serial-pci,id=vser"]
    if inputs.spec.guest_agent:
        parts += ["-chardev", f"socket,id=agent,path={quoted(inputs.runtime / 'agent.sock')},{socket}"]
        parts += ["-device", "virtserialport,bus=vser.0,chardev=agent,id=agent,name=org.qemu.guest_agent.0"]
    parts += ["-device", "VGA,id=vga", "-vnc", f"unix:{quoted(inputs.runtime / 'vnc.sock')}"]
    parts += ["-device", "qemu-xhci,id=usb", "-device", "usb-tablet,bus=usb.0"]
    parts += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]
    return [*parts, "-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on", "-device", "pvpanic"]


def _tpm(tpm: TpmAttachment | None) -> list[str]:
    if tpm is None:
        return []
    emulator = ["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]
    return ["-chardev", f"socket,id=tpm,path={quoted(tpm.socket)}", *emulator]


def _kernel(inputs: MachineInputs) -> list[str]:
    if inputs.kernel is None or not isinstance(inputs.spec.boot, KernelBoot):
        return []
    initrd = ["-initrd", str(inputs.initrd)] if inputs.initrd else []
    return ["-kernel", str(inputs.kernel), *initrd, "-append", inputs.spec.boot.append]
