"""The partition table of a built image, and where its two file systems lie.

GPT (UEFI specification, chapter 5): an EFI system partition first, the root file system last, so
that a guest on a larger disk can grow it. The first mebibyte holds the table.
"""

from dataclasses import dataclass

from holdfast.spec.units import GIB, MIB

SECTOR = 512
SIZE = 2 * GIB
"""Bytes of the whole disk: what a VM gets that asks for no size of its own."""


@dataclass(frozen=True)
class Partition:
    start: int
    """Bytes."""
    size: int
    """Bytes."""
    kind: str
    """GPT partition type: UEFI specification, table 22, or the Discoverable Partitions Specification."""
    name: str


# FAT16 throughout: FAT32 needs more clusters than a small partition has.
ESP = Partition(MIB, 63 * MIB, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "EFI system")
# The backup table needs the last 33 sectors.
ROOT = Partition(64 * MIB, SIZE - 65 * MIB, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "root")


def table_script() -> str:
    """What sfdisk(8) reads from its standard input."""
    lines = [
        f'start={part.start // SECTOR}, size={part.size // SECTOR}, type={part.kind}, name="{part.name}"'
        for part in (ESP, ROOT)
    ]
    return "\n".join(["label: gpt", f"first-lba: {MIB // SECTOR}", *lines, ""])
