"""pvpanic: a guest's kernel says that it crashed (QEMU, docs/specs/pvpanic.rst)."""

from holdfast.machine.devices.quoting import device


def panic() -> list[str]:
    return device("pvpanic-pci", id="panic", bus="pcie.0", addr="0x5")
