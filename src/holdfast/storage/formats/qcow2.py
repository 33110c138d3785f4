"""qcow2, versions 2 and 3 (QEMU, docs/interop/qcow2.rst). Only images that stand alone are taken."""

import struct
from dataclasses import dataclass

from holdfast.storage.formats.reading import LONGEST_SHOWN, SECTOR, Inspection, Reader, damaged, disk
from holdfast.storage.formats.refusals import (
    ImageEncrypted,
    ImageFeatureUnknown,
    ImageHasBackingFile,
    ImageHasDataFile,
)

MAGIC = b"QFI\xfb"

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_DATA_FILE_NAME = 0x44415441
_DIRTY, _CORRUPT, _DATA_FILE, _EXTENDED_L2 = 1 << 0, 1 << 1, 1 << 2, 1 << 4
_KNOWN = 0b11111
_OFFSET = 0x00FFFFFFFFFFFE00  # bits 9 to 55 of an L1 or L2 entry
_COMPRESSED = 1 << 62
_LONGEST_L1 = 32 * 1024 * 1024  # bytes; as QEMU
_LONGEST_NAME = 1023


@dataclass(frozen=True)
class Header:
    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size: int
    crypt: int
    l1_entries: int
    l1_offset: int
    refcounts_offset: int
    refcounts_clusters: int
    incompatible: int
    length: int

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l2_entry(self) -> int:
        return 16 if self.extended else 8

    @property
    def extended(self) -> bool:
        """Whether L2 entries say of each 32nd of a cluster whether it is there."""
        return bool(self.incompatible & _EXTENDED_L2)

    @property
    def unit(self) -> int:
        """Bytes that are there, or not, as one: a cluster or a subcluster."""
        return self.cluster // 32 if self.extended else self.cluster

    @property
    def needs_more_than_tables(self) -> bool:
        """Corrupt, with data elsewhere, compressed by zstd, or with features that are not known."""
        return bool(self.incompatible & ~(_DIRTY | _EXTENDED_L2))


def inspect(reader: Reader) -> Inspection:
    header = read_header(reader)
    _refuse_features(reader, header)
    found = disk(reader, "qcow2", header.size)
    reader.require(
        header.refcounts_offset, header.refcounts_clusters << header.cluster_bits, "the refcount table"
    )
    if not header.refcounts_clusters or header.refcounts_offset < header.cluster:
        raise damaged("qcow2", "it has no refcount table")
    covered = header.cluster // header.l2_entry * header.cluster
    needed = -(-header.size // covered)
    if header.l1_entries < needed or header.l1_entries * 8 > _LONGEST_L1:
        raise damaged("qcow2", f"{header.l1_entries} L1 entries for {header.size} bytes")
    _require_clusters(reader, header, needed)
    return found


def read_header(reader: Reader) -> Header:
    """The header's fields, where they can be those of an image.

    Raises:
        ImageTruncated, ImageDamaged, ImageFeatureUnknown: they cannot.
    """
    fields = _V2.unpack(reader.read(0, _V2.size, "the qcow2 header"))
    _, version, backing_offset, backing_length, bits, size, crypt, l1, l1_offset, refs, clusters = fields[:11]
    if version not in (2, 3):
        raise ImageFeatureUnknown(
            f"qcow2 version {version} is not known",
            value=version,
            cure="Convert it with `qemu-img convert -O qcow2` where it was made.",
        )
    incompatible, length = 0, _V2.size
    if version == 3:
        incompatible, _, _, _, length = _V3.unpack(reader.read(_V2.size, _V3.size, "the qcow2 header"))
    if not 9 <= bits <= 21:
        raise damaged("qcow2", f"clusters of 2^{bits} bytes")
    if incompatible & _EXTENDED_L2 and bits < 14:
        raise damaged("qcow2", f"subclusters in clusters of 2^{bits} bytes")
    if not 72 <= length <= 1 << bits:
        raise damaged("qcow2", f"a header of {length} bytes")
    return Header(
        version,
        backing_offset,
        backing_length,
        bits,
        size,
        crypt,
        l1,
        l1_offset,
        refs,
        clusters,
        incompatible,
        length,
    )


def _refuse_features(reader: Reader, header: Header) -> None:
    if header.backing_offset:
        length = min(header.backing_length, _LONGEST_NAME)
        name = reader.peek(header.backing_offset, length).decode(errors="replace")
        raise ImageHasBackingFile(
            f"the qcow2 image is only the changes to another file, {name[:LONGEST_SHOWN]!r}",
            value=name,
            cure="Make it whole where both files are: `qemu-img convert -O qcow2 IMAGE WHOLE.qcow2`.",
        )
    if header.incompatible & _DATA_FILE:
        name = _extension(reader, header, _DATA_FILE_NAME)
        raise ImageHasDataFile(
            f"the qcow2 image keeps its data in another file, {name[:LONGEST_SHOWN]!r}",
            value=name,
            cure="Make it whole where both files are: `qemu-img convert -O qcow2 IMAGE WHOLE.qcow2`.",
        )
    if header.crypt:
        raise ImageEncrypted(
            "the qcow2 image is encrypted",
            value=header.crypt,
            cure="Convert it to one that is not, with `qemu-img convert` and its key.",
        )
    if header.incompatible & ~_KNOWN:
        raise ImageFeatureUnknown(
            f"the qcow2 image needs features that are not known (bits {header.incompatible & ~_KNOWN:#x})",
            value=header.incompatible,
            cure="Convert it with `qemu-img convert -O qcow2 -o compat=1.1` where it was made.",
        )
    if header.incompatible & _CORRUPT:
        raise damaged("qcow2", "it is marked as corrupt; `qemu-img check -r all` may repair it")


def _extension(reader: Reader, header: Header, wanted: int) -> str:
    """Text of a header extension; empty where there is none."""
    position = header.length
    while position + 8 <= header.cluster:
        head = reader.peek(position, 8)
        if len(head) < 8:
            break
        kind, length = struct.unpack(">II", head)
        if kind == 0:
            break
        if kind == wanted:
            return reader.peek(position + 8, min(length, _LONGEST_NAME)).decode(errors="replace")
        position += 8 + -(-length // 8) * 8
    return ""


def _require_clusters(reader: Reader, header: Header, needed: int) -> None:
    """QEMU reads what lies beyond the end of the file as zeros, so a file cut off would pass unseen."""
    if header.l1_offset % header.cluster or header.l1_offset < header.cluster:
        raise damaged("qcow2", f"the L1 table at byte {header.l1_offset}")
    l1 = reader.table(header.l1_offset, header.l1_entries, "Q", True, "the L1 table")
    tables = {entry & _OFFSET for entry in l1[:needed]} - {0}
    host_bits = (1 << (62 - (header.cluster_bits - 8))) - 1
    step = header.l2_entry // 8
    for offset in sorted(tables, reverse=True):
        if reader.seen_enough:
            break
        if offset % SECTOR:
            raise damaged("qcow2", f"an L2 table at byte {offset}")
        entries = reader.table(offset, header.cluster // 8, "Q", True, "an L2 table")[::step]
        starts = (each & host_bits if each & _COMPRESSED else each & _OFFSET for each in entries if each)
        reader.require_starts(starts, "a data cluster")
