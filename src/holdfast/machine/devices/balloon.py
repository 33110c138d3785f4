"""The balloon: gives free pages back to the host, and lets go when the guest runs short."""

from holdfast.machine.devices.quoting import device


def balloon() -> list[str]:
    return device(
        "virtio-balloon-pci",
        id="balloon",
        bus="pcie.0",
        addr="0x3",
        free_page_reporting=True,
        deflate_on_oom=True,
    )
