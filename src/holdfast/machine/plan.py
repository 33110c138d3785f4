"""From a VM's specification and what the rooms prepared to QEMU's arguments; pure.

Every device has a file of its own in devices/; this module only puts them together. What a guest
sees (addresses, ids, order) follows from the values alone, so that saved memory finds the same
machine again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from holdfast.machine.devices.agent import agent
from holdfast.machine.devices.balloon import balloon
from holdfast.machine.devices.board import board
from holdfast.machine.devices.cds import cds
from holdfast.machine.devices.clock import clock
from holdfast.machine.devices.console import console
from holdfast.machine.devices.cpu import cpu, interrupt_remapping
from holdfast.machine.devices.disks import disks, opened, secrets
from holdfast.machine.devices.display import display
from holdfast.machine.devices.firmware import firmware
from holdfast.machine.devices.kernel import kernel
from holdfast.machine.devices.memory import memory
from holdfast.machine.devices.monitor import monitor
from holdfast.machine.devices.nics import nics
from holdfast.machine.devices.panic import panic
from holdfast.machine.devices.quoting import quoted
from holdfast.machine.devices.rng import rng
from holdfast.machine.devices.tpm import tpm
from holdfast.machine.devices.usb import usb
from holdfast.spec.attachment import (
    CdAttachment,
    DiskAttachment,
    FirmwareAttachment,
    NicAttachment,
    TpmAttachment,
)
from holdfast.spec.vm import Acceleration, KernelBoot, Nic, UsbDevice, VmSpec

# What a guest that breaks out of QEMU can no longer ask of the host's kernel.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Qemu(Protocol):
    """What of the installed QEMU decides over its arguments."""

    @property
    def io_uring(self) -> bool:
        """QEMU and the host's kernel can do file I/O through io_uring."""
        ...


@dataclass(frozen=True)
class PlainQemu:
    """Nothing that the oldest supported QEMU, 7.2, lacks on any host."""

    io_uring: bool = False


PLAIN = PlainQemu()


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
    """Listening UNIX socket on which QEMU serves its monitor; negative: QEMU makes runtime/qmp.sock."""
    disks: tuple[DiskAttachment, ...] = ()
    open_disks: tuple[tuple[str, int], ...] = ()
    """Disks whose top is `opened_place` of them, with the inheritable descriptor that it stands for."""
    secrets: tuple[tuple[str, int], ...] = ()
    """Id of each secret object that the disks need, and a descriptor that it is read from."""
    cds: tuple[CdAttachment, ...] = ()
    nics: tuple[tuple[Nic, NicAttachment], ...] = ()
    usb: tuple[tuple[UsbDevice, int], ...] = ()
    """Devices of the host, each with an inheritable descriptor of its node."""
    firmware: FirmwareAttachment | None = None
    tpm: TpmAttachment | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    incoming: bool = False
    """The machine waits for saved memory (`migrate-incoming`)."""


def arguments(inputs: MachineInputs, qemu: Qemu = PLAIN) -> tuple[str, ...]:
    """QEMU's arguments after the program's name. The VM starts paused.

    Raises:
        TooManyDevices: there are fewer PCIe ports than disks and cards that need one.
    """
    return (*_process(inputs), *_platform(inputs), *_attached(inputs, qemu), *_channels(inputs))


def _process(inputs: MachineInputs) -> list[str]:
    parts = ["-nodefaults", "-no-user-config", "-S", "-msg", "timestamp=on", "-sandbox", _SANDBOX]
    parts += ["-name", f"guest={quoted(inputs.name)},debug-threads=on", "-uuid", inputs.vm_id]
    return parts + (["-incoming", "defer"] if inputs.incoming else [])


def _platform(inputs: MachineInputs) -> list[str]:
    spec, acceleration, flash = inputs.spec, inputs.acceleration, inputs.firmware
    smm = flash is not None and flash.smm
    parts = board(inputs.machine_type, acceleration, spec.cpus, flash=flash is not None, smm=smm)
    most = spec.layout.max_cpus if spec.layout else None
    parts += cpu(spec.cpus, acceleration, spec.os, inputs.cpu_model, most)
    parts += memory(spec.memory, acceleration, spec.layout.dimms if spec.layout else ())
    parts += clock(spec.os) + firmware(flash) + tpm(inputs.tpm)
    if isinstance(spec.boot, KernelBoot):
        parts += kernel(inputs.kernel, inputs.initrd, spec.boot.append)
    return parts + interrupt_remapping(spec.cpus)


def _attached(inputs: MachineInputs, qemu: Qemu) -> list[str]:
    layout = inputs.spec.layout
    parts = secrets(inputs.secrets) + [part for disk, fd in inputs.open_disks for part in opened(disk, fd)]
    parts += nics(inputs.nics, layout.nic_ports if layout else None)
    # Emulated, QEMU 10.0 loses requests of I/O threads when a disk moves or waits; they bring nothing there.
    threaded = inputs.acceleration is Acceleration.KVM
    ports, queues = (layout.disk_ports, layout.queues) if layout else (None, None)
    parts += disks(inputs.disks, io_uring=qemu.io_uring, ports=ports, queues=queues, threaded=threaded)
    return (
        parts
        + cds(inputs.cds, inputs.spec.os, queues)
        + display(inputs.runtime / "vnc.sock")
        + usb(inputs.usb)
        + balloon()
        + rng()
    )


def _channels(inputs: MachineInputs) -> list[str]:
    parts = panic() + monitor(inputs.runtime / "qmp.sock", inputs.monitor_fd)
    parts += console(inputs.runtime / "console.sock", inputs.console_log)
    return parts + (agent(inputs.runtime / "agent.sock") if inputs.spec.guest_agent else [])
