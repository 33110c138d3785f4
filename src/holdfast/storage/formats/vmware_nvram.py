"""VMware's `.nvram` files, as far as UEFI variables go; VMware documents nothing of them.

    "MRVN" │ parts of a BIOS │ ... │ "VMWNVRAM", 0, length │ variable, variable, ... │ 0xFF ...
    variable: vendor (16 bytes), attributes, length of name and value, length of name, name, value

By what others found in them, three of whom agree. Numbers are of 4 bytes, little-endian; the length of
the region counts from its name on. A variable that is written anew stands behind the old one.
"""

import struct
import uuid
from dataclasses import dataclass

LARGEST = 4 * 1024 * 1024
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
"""EFI_GLOBAL_VARIABLE (UEFI specification, 3.3)."""
_MAGIC, _REGION = b"MRVN", b"VMWNVRAM"
_HEAD = struct.Struct("<8sLL")
_RECORD = struct.Struct("<16sLLL")
_MOST = 4096
_LONGEST_NAME = 1024
_LONGEST_DESCRIPTION = 200  # characters
_MOST_ENTRIES = 64


class NotNvram(ValueError):
    """No such file, or one that contradicts itself; its text says how."""


@dataclass(frozen=True)
class StoredVariable:
    name: str
    vendor: uuid.UUID
    attributes: int
    """EFI_VARIABLE_* bits (UEFI specification, 8.2)."""
    value: bytes


def is_nvram(data: bytes) -> bool:
    return data.startswith(_MAGIC)


def variables(data: bytes) -> dict[tuple[str, uuid.UUID], StoredVariable]:
    """The variables by name and vendor. Raises NotNvram."""
    at = data.find(_REGION)
    if not is_nvram(data) or at < 0 or at + _HEAD.size > len(data) or len(data) > LARGEST:
        raise NotNvram("it has no region of UEFI variables")
    _, _, length = _HEAD.unpack_from(data, at)
    end = at + length
    if not _HEAD.size <= length <= len(data) - at:
        raise NotNvram(f"its region of {length} bytes does not fit")
    found: dict[tuple[str, uuid.UUID], StoredVariable] = {}
    at += _HEAD.size
    while at + _RECORD.size <= end:
        vendor, attributes, size, name_size = _RECORD.unpack_from(data, at)
        start = at + _RECORD.size
        at = start + size
        if at > end or name_size > min(size, _LONGEST_NAME) or name_size % 2 or len(found) >= _MOST:
            raise NotNvram("a variable that does not fit")
        name = data[start : start + name_size].decode("utf-16-le", errors="replace").rstrip("\0")
        made = StoredVariable(name, uuid.UUID(bytes_le=vendor), attributes, data[start + name_size : at])
        found[name, made.vendor] = made
    return found


def boot_entries(found: dict[tuple[str, uuid.UUID], StoredVariable]) -> tuple[str, ...]:
    """What the entries of BootOrder call themselves, in its order (EFI_LOAD_OPTION, UEFI 3.1.3)."""
    order = found.get(("BootOrder", GLOBAL))
    names = []
    numbers = order.value[: 2 * _MOST_ENTRIES] if order else b""
    for (number,) in struct.iter_unpack("<H", numbers[: len(numbers) & ~1]):
        entry = found.get((f"Boot{number:04X}", GLOBAL))
        if entry is not None and len(entry.value) > 6:
            raw = entry.value[6 : 6 + 2 * _LONGEST_DESCRIPTION]
            names.append(raw[: len(raw) & ~1].decode("utf-16-le", errors="replace").partition("\0")[0])
    return tuple(names)
