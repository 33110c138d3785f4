"""Files without a disk format around them: raw disks, ISO 9660 discs, kernels, initial RAM disks.

MBR and GPT: UEFI Specification 2.10, chapter 5. ISO 9660: ECMA-119, 8.4. bzImage: the Linux
kernel's Documentation/arch/x86/boot.rst. cpio newc: its Documentation/driver-api/early-userspace.
"""

import struct

from holdfast.spec.image import ImageKind
from holdfast.storage.formats.reading import SECTOR, Inspection, Reader, damaged, disk

_ISO_AT = 16 * 2048
_PROTECTIVE = 0xEE
_PARTITION = struct.Struct("<B3sB3sII")
_INITRD_STARTS = (
    b"\x1f\x8b",  # gzip, RFC 1952
    b"\xfd7zXZ\0",  # xz
    b"\x28\xb5\x2f\xfd",  # zstd, RFC 8878
    b"\x04\x22\x4d\x18",  # lz4 frame
    b"\x02\x21\x4c\x18",  # lz4 legacy, as the kernel's own tools write
    b"070701",
    b"070702",
)


def is_iso(reader: Reader) -> bool:
    return reader.peek(_ISO_AT + 1, 5) == b"CD001"


def iso(reader: Reader) -> Inspection:
    volume = reader.read(_ISO_AT, 2048, "the volume descriptor")
    (blocks,), (block,) = struct.unpack_from("<I", volume, 80), struct.unpack_from("<H", volume, 128)
    if volume[0] == 1:  # a primary volume descriptor
        if block not in (512, 1024, 2048) or not blocks:
            raise damaged("ISO 9660", f"{blocks} blocks of {block} bytes")
        reader.require(0, blocks * block, "the ISO 9660 volume")
    return Inspection("iso", ImageKind.ISO, reader.size)


def is_kernel(reader: Reader) -> bool:
    return reader.peek(0x202, 4) == b"HdrS"


def kernel(reader: Reader) -> Inspection:
    head = reader.read(0, 0x206, "the kernel's header")
    setup, (paragraphs,) = head[0x1F1] or 4, struct.unpack_from("<I", head, 0x1F4)
    reader.require(0, (setup + 1) * 512 + paragraphs * 16, "the kernel")
    return Inspection("kernel", ImageKind.KERNEL, reader.size)


def is_initrd(reader: Reader) -> bool:
    return reader.peek(0, 6).startswith(_INITRD_STARTS)


def initrd(reader: Reader) -> Inspection:
    return Inspection("initrd", ImageKind.INITRD, reader.size)


def has_partitions(reader: Reader) -> bool:
    """A GPT header in the second sector (of 512 or 4096 bytes), or an MBR that names a partition."""
    return any(reader.peek(size, 8) == b"EFI PART" for size in (512, 4096)) or bool(_partitions(reader))


def _partitions(reader: Reader) -> list[tuple[int, int, int]]:
    """Type, first sector and sectors of the MBR's partitions; none where it is not an MBR."""
    head = reader.peek(0, SECTOR)
    if len(head) < SECTOR or head[510:] != b"\x55\xaa":
        return []
    found = []
    for status, _, kind, _, first, count in _PARTITION.iter_unpack(head[446:510]):
        if status not in (0, 0x80):
            return []
        if kind and first and count:
            found.append((kind, first, count))
    return found


def raw(reader: Reader) -> Inspection:
    found = disk(reader, "raw", -(-reader.size // SECTOR) * SECTOR)
    for sector in (512, 4096):
        head = reader.peek(sector, 40)
        if head.startswith(b"EFI PART") and len(head) == 40:
            (backup,) = struct.unpack_from("<Q", head, 32)
            reader.require(0, (backup + 1) * sector, "the partition table")
            return found
    for kind, first, count in _partitions(reader):
        if kind != _PROTECTIVE:
            reader.require(first * SECTOR, count * SECTOR, "a partition")
    return found


def is_text(reader: Reader) -> bool:
    """All of its beginning is what a person could have typed."""
    head = reader.peek(0, 4096)
    return all(byte in b"\t\n\r\f\b\x1b" or 0x20 <= byte < 0x7F or byte >= 0x80 for byte in head) and bool(
        head
    )
