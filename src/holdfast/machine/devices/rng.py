"""Randomness from the host's kernel."""

from holdfast.machine.devices.quoting import backend, device


def rng() -> list[str]:
    return backend("rng-builtin", id="entropy") + device(
        "virtio-rng-pci", id="rng", bus="pcie.0", addr="0x4", rng="entropy"
    )
