"""Board, processor and memory."""

from holdfast.machine.devices.quoting import blockdev
from holdfast.spec.attachment import FirmwareAttachment
from holdfast.spec.vm import Acceleration, GuestOs

_HYPERV = "hv-relaxed,hv-vapic,hv-spinlocks=0x1fff,hv-vpindex,hv-runtime,hv-synic,hv-time,hv-stimer"


def board(machine_type: str, acceleration: Acceleration, firmware: FirmwareAttachment | None) -> list[str]:
    machine = f"{machine_type},memory-backend=ram,hpet=off,vmport=off"
    arguments: list[str] = []
    if firmware:
        machine += f",smm={'on' if firmware.smm else 'off'},pflash0=fw,pflash1=vars"
        for node, path, fixed in (("fw", firmware.code, True), ("vars", firmware.variables, False)):
            file = {"driver": "file", "filename": str(path)}
            arguments += blockdev({"driver": "raw", "node-name": node, "read-only": fixed, "file": file})
        arguments += ["-global", "ICH9-LPC.disable_s3=1"]
        if firmware.smm:
            arguments += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    accel = "kvm" if acceleration is Acceleration.KVM else "tcg,thread=multi"
    return ["-machine", machine, "-accel", accel, *arguments]


def processor(cpus: int, acceleration: Acceleration, guest: GuestOs, model: str = "") -> list[str]:
    model = model or ("host" if acceleration is Acceleration.KVM else "max")
    if acceleration is Acceleration.KVM and guest is GuestOs.WINDOWS:
        model += f",{_HYPERV}"
    return ["-cpu", model, "-smp", f"{cpus},sockets=1,cores={cpus},threads=1"]


def memory(size: int) -> list[str]:
    """`size` in bytes."""
    return ["-m", f"size={size // 1024}k", "-object", f"memory-backend-memfd,id=ram,size={size},share=on"]


def clock(guest: GuestOs) -> list[str]:
    return ["-rtc", f"base={'localtime' if guest is GuestOs.WINDOWS else 'utc'},driftfix=slew"]
