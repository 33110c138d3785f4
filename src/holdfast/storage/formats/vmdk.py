"""VMDK sparse extents, monolithic and streamOptimized (VMware, Virtual Disk Format 5.0).

A descriptor, alone or inside the extent, can name any file of the host: only one that names
nothing but its own extent is taken.
"""

import re
import struct
from array import array
from collections.abc import Iterable

from holdfast.storage.formats.reading import LONGEST_SHOWN, SECTOR, Inspection, Reader, damaged, disk
from holdfast.storage.formats.refusals import (
    ImageFeatureUnknown,
    ImageHasBackingFile,
    ImageNamesOtherFiles,
    ImageTruncated,
)

MAGIC = b"KDMV"
TEXT = b"# Disk DescriptorFile"
HEADER = struct.Struct("<4sIIQQQQIQQQ")
"""Magic, version, flags, capacity, grain, place and length of the descriptor, entries a table, redundant
directory, directory, overhead; all but the first three and the entries in sectors."""

_AT_END = 0xFFFFFFFFFFFFFFFF
_LONGEST_TEXT = 64 * 1024
# Spaces at the start of a line are not to reach over lines: there may be thousands of empty ones.
_EXTENT = re.compile(r"^[^\S\n]*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)(?:\s+\"([^\"]*)\")?", re.MULTILINE)
_PARENT = re.compile(r"^[^\S\n]*parentFileNameHint\s*=\s*\"?([^\"\n]*)", re.MULTILINE | re.IGNORECASE)
_PARENT_CID = re.compile(r"^[^\S\n]*parentCID\s*=\s*([0-9a-f]+)", re.MULTILINE | re.IGNORECASE)
_NO_PARENT = 0xFFFFFFFF
_COMPRESSED = 1 << 16
_STRETCH_BITS = 20
"""Sectors of a stretch of the file, as a power of two: 512 MiB."""


def refuse_text(reader: Reader) -> Inspection:
    """A descriptor of its own: its data is in the files that it names."""
    text = reader.peek(0, _LONGEST_TEXT).decode(errors="replace")
    raise _names_others([match[2] or "" for match in _EXTENT.finditer(text)])


def _names_others(names: list[str]) -> ImageNamesOtherFiles:
    shown = ", ".join(repr(name[:LONGEST_SHOWN]) for name in names[:5]) or "none that can be read"
    return ImageNamesOtherFiles(
        f"the VMDK file only describes a disk; the data is in other files ({shown})",
        value=names[0][:LONGEST_SHOWN] if names else "",
        cure="Make one file of it where they all are: `qemu-img convert -O qcow2 DISK.vmdk WHOLE.qcow2`.",
    )


def inspect(reader: Reader) -> Inspection:
    fields = read_header(reader)
    _, version, _, capacity, grain, text_at, text_sectors, per_table, _, directory, overhead = fields
    if version not in (1, 2, 3):
        raise ImageFeatureUnknown(
            f"VMDK version {version} is not known",
            value=version,
            cure="Convert it with `qemu-img convert -O qcow2` where it was made.",
        )
    _check_text(reader, text_at, text_sectors, capacity)
    found = disk(reader, "vmdk", capacity * SECTOR)
    if not 1 <= per_table <= 512 or not 8 <= grain <= 1 << 16 or grain & (grain - 1):
        raise damaged("VMDK", f"{per_table} entries a table, grains of {grain} sectors")
    if fields[9] != _AT_END and overhead * SECTOR > reader.size:
        reader.require(overhead * SECTOR, 0, "the VMDK tables")
    tables = reader.table(
        directory * SECTOR, -(-capacity // (per_table * grain)), "I", False, "the grain directory"
    )
    _check_tables(reader, tables, per_table, 1 if fields[2] & _COMPRESSED else grain)
    return found


def _check_tables(reader: Reader, tables: "array[int]", per_table: int, grain: int) -> None:
    """Tables and grains of at least `grain` sectors begin within the file, and none lies over another."""
    places, data = _Places(-(-per_table * 4 // SECTOR)), _Places(grain)
    places.add(each for each in tables if each)
    if places.overlap():
        raise damaged("VMDK", "two grain tables lie in one place")
    for table in reversed(tables):  # the end first: that is what a file which was cut off lacks
        if reader.seen_enough:
            break
        if table:
            grains = reader.table(table * SECTOR, per_table, "I", False, "a grain table")
            # 1 is a grain of zeros.
            reader.require_starts((each * SECTOR for each in grains if each > 1), "a grain")
            data.add(each for each in grains if each > 1)
    if data.overlap():
        raise damaged("VMDK", "two grains lie in one place")


class _Places:
    """Where things of `length` sectors begin; kept by stretches, so that few are sorted at once."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._stretches: dict[int, array[int]] = {}

    def add(self, sectors: Iterable[int]) -> None:
        for sector in sectors:
            self._stretches.setdefault(sector >> _STRETCH_BITS, array("I")).append(sector)

    def overlap(self) -> bool:
        last = -self._length
        for _, sectors in sorted(self._stretches.items()):
            if len(sectors) > (1 << _STRETCH_BITS) // self._length + 1:
                return True  # however they lie
            for sector in sorted(sectors):
                if sector - last < self._length:
                    return True
                last = sector
        return False


def read_header(reader: Reader) -> tuple[int, ...]:
    """The header's fields; of a stream those of its footer, which knows where the directory is."""
    fields: tuple[int, ...] = HEADER.unpack(reader.read(0, HEADER.size, "the VMDK header"))
    return _footer(reader) if fields[9] == _AT_END else fields


def _footer(reader: Reader) -> tuple[int, ...]:
    """The copy of the header before the end-of-stream marker."""
    data = reader.peek(reader.size - 2 * SECTOR, HEADER.size)
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise ImageTruncated(
            "the VMDK stream has no footer, so its end is missing",
            value=reader.size,
            cure="The file was cut off on its way: copy or download it again.",
        )
    fields: tuple[int, ...] = HEADER.unpack(data)
    if fields[9] == _AT_END:
        raise damaged("VMDK", "no grain directory")
    return fields


def _check_text(reader: Reader, sector: int, sectors: int, capacity: int) -> None:
    text = ""
    if sector and sectors:
        text = reader.peek(sector * SECTOR, min(sectors * SECTOR, _LONGEST_TEXT)).decode(errors="replace")
    extents = [(match[1], match[2] or "") for match in _EXTENT.finditer(text)]
    if capacity == 0 or len(extents) > 1 or any(kind.upper() != "SPARSE" for kind, _ in extents):
        raise _names_others([name for _, name in extents])
    parent, cid = _PARENT.search(text), _PARENT_CID.search(text)
    if parent or (cid and int(cid[1], 16) != _NO_PARENT):
        name = parent[1][:1023] if parent else ""
        raise ImageHasBackingFile(
            f"the VMDK image is only the changes to another file, {name[:LONGEST_SHOWN]!r}",
            value=name,
            cure="Make it whole where both files are: `qemu-img convert -O qcow2 IMAGE WHOLE.qcow2`.",
        )
