"""The board: a versioned q35 with nothing on it that a guest of today does not need."""

from holdfast.machine.devices.quoting import quoted
from holdfast.spec.vm import Acceleration

XAPIC_CPUS = 255
"""What 8-bit APIC ids can name; beyond it interrupts are remapped (Intel VT-d, section 5.1)."""

# A guest that powers off stays, so that its end is never mistaken for a crash; what a guest does
# after a panic (dump, reboot) is its own affair, the event is reported all the same.
_ACTIONS = ["-action", "reboot=reset,shutdown=pause,panic=none"]
_SLEEP = ["-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1"]


def board(machine_type: str, acceleration: Acceleration, cpus: int, *, flash: bool, smm: bool) -> list[str]:
    """`flash` says that firmware is given, `smm` that it needs System Management Mode."""
    machine = [quoted(machine_type), "hpet=off", "vmport=off"]
    machine.append(f"smm={'on' if smm else 'off'}")
    if flash:
        machine += ["pflash0=fw", "pflash1=vars"]
    if cpus > XAPIC_CPUS and acceleration is Acceleration.KVM:
        machine.append("kernel-irqchip=split")
    accelerator = "kvm" if acceleration is Acceleration.KVM else "tcg,thread=multi"
    return ["-machine", ",".join(machine), "-accel", accelerator, *_ACTIONS, *_SLEEP, "-boot", "strict=on"]
