"""VHD, fixed and dynamic (Microsoft, Virtual Hard Disk Image Format Specification 1.0)."""

import struct

from holdfast.storage.formats.reading import LONGEST_SHOWN, SECTOR, Inspection, Reader, damaged, disk
from holdfast.storage.formats.refusals import ImageHasBackingFile, ImageTruncated

COOKIE = b"conectix"

_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBI")
_SPARSE = struct.Struct(">8sQQIII")
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_PARENT_NAME = 64  # in the sparse header; UTF-16, 512 bytes
_UNUSED = 0xFFFFFFFF


def has_footer(reader: Reader) -> bool:
    return reader.peek(reader.size - SECTOR, 8) == COOKIE


def inspect(reader: Reader) -> Inspection:
    if not has_footer(reader):
        raise ImageTruncated(
            "the VHD file has no footer, so its end is missing",
            value=reader.size,
            cure="The file was cut off on its way: copy or download it again.",
        )
    fields = _FOOTER.unpack(reader.read(reader.size - SECTOR, _FOOTER.size, "the VHD footer"))
    header_at, size, kind = fields[3], fields[9], fields[13]
    found = disk(reader, "vpc", size)
    if kind == _FIXED:
        reader.require(size, SECTOR, "the disk")
    elif kind in (_DYNAMIC, _DIFFERENCING):
        _check_blocks(reader, header_at, size, kind)
    else:
        raise damaged("VHD", f"disk type {kind}")
    return found


def _check_blocks(reader: Reader, header_at: int, size: int, kind: int) -> None:
    head = reader.read(header_at, 1024, "the VHD header")
    cookie, _, table_at, _, entries, block = _SPARSE.unpack(head[: _SPARSE.size])
    if cookie != b"cxsparse":
        raise damaged("VHD", "no header of a dynamic disk")
    if kind == _DIFFERENCING:
        name = head[_PARENT_NAME : _PARENT_NAME + 512].decode("utf-16-be", errors="replace").rstrip("\0")
        raise ImageHasBackingFile(
            f"the VHD image is only the changes to another file, {name[:LONGEST_SHOWN]!r}",
            value=name,
            cure="Merge it into its parent where both files are.",
        )
    if block < SECTOR or block & (block - 1):
        raise damaged("VHD", f"blocks of {block} bytes")
    if entries < -(-size // block):
        raise damaged("VHD", f"{entries} blocks of {block} bytes for {size} bytes")
    table = reader.table(table_at, entries, "I", True, "the block table")
    reader.require_starts((each * SECTOR for each in table if each != _UNUSED), "a block")
