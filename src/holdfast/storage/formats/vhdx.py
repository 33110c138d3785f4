"""VHDX (Microsoft, [MS-VHDX]). Sizes come from the metadata region; logs are left to qemu-img."""

import struct
import uuid

from holdfast.spec.units import MIB
from holdfast.storage.formats.reading import Inspection, Reader, damaged, disk
from holdfast.storage.formats.refusals import ImageFeatureUnknown, ImageHasBackingFile

MAGIC = b"vhdxfile"

_REGION_TABLES = (192 * 1024, 256 * 1024)
_MOST_REGIONS = 2047
_REGION = struct.Struct("<16sQII")
_ITEM = struct.Struct("<16sIIII")
_BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_HAS_PARENT = 2
_PRESENT = (6, 7)


def inspect(reader: Reader) -> Inspection:
    regions = _regions(reader)
    if _BAT not in regions or _METADATA not in regions:
        raise damaged("VHDX", "a region is missing")
    items = _items(reader, regions[_METADATA][0])
    if _FILE_PARAMETERS not in items or _DISK_SIZE not in items:
        raise damaged("VHDX", "the size of the disk is missing")
    block, flags = struct.unpack("<II", reader.read(items[_FILE_PARAMETERS], 8, "the VHDX metadata"))
    (size,) = struct.unpack("<Q", reader.read(items[_DISK_SIZE], 8, "the VHDX metadata"))
    if flags & _HAS_PARENT:
        raise ImageHasBackingFile(
            "the VHDX image is only the changes to another file",
            value="",
            cure="Merge it into its parent where both files are.",
        )
    found = disk(reader, "vhdx", size)
    if not MIB <= block <= 256 * MIB or block & (block - 1):
        raise damaged("VHDX", f"blocks of {block} bytes")
    offset, length = regions[_BAT]
    if length // 8 < -(-size // block):
        raise damaged("VHDX", f"{length // 8} blocks of {block} bytes for {size} bytes")
    table = reader.table(offset, length // 8, "Q", False, "the block table")
    last = max(((each >> 20) * MIB for each in table if each & 7 in _PRESENT), default=None)
    if last is not None:
        reader.require(last, block, "a block")
    return found


def _regions(reader: Reader) -> dict[bytes, tuple[int, int]]:
    """Offset and length of each region by its GUID, from the first table that can be read."""
    for start in _REGION_TABLES:
        head = reader.read(start, 16, "the VHDX region table")
        signature, _, count, _ = struct.unpack("<4sIII", head)
        if signature != b"regi" or count > _MOST_REGIONS:
            continue
        data = reader.read(start + 16, count * _REGION.size, "the VHDX region table")
        regions = {}
        for guid, offset, length, required in _REGION.iter_unpack(data):
            if required & 1 and guid not in (_BAT, _METADATA):
                name = str(uuid.UUID(bytes_le=guid))
                raise ImageFeatureUnknown(
                    f"the VHDX image needs a region that is not known ({name})",
                    value=name,
                    cure="Convert it with the program that made it.",
                )
            reader.require(offset, length, "a VHDX region")
            regions[guid] = (offset, length)
        return regions
    raise damaged("VHDX", "no region table")


def _items(reader: Reader, start: int) -> dict[bytes, int]:
    """Where each metadata item lies."""
    signature, _, count = struct.unpack("<8sHH", reader.read(start, 12, "the VHDX metadata"))
    if signature != b"metadata" or count > _MOST_REGIONS:
        raise damaged("VHDX", "no metadata table")
    data = reader.read(start + 32, count * _ITEM.size, "the VHDX metadata")
    return {guid: start + offset for guid, offset, _, _, _ in _ITEM.iter_unpack(data)}
