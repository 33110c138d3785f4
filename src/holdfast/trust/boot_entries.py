"""What firmware would start, and in which order, as a variable store says.

Boot#### and BootOrder (UEFI specification, section 3.3), EFI_LOAD_OPTION (3.1.3) and device paths
(chapter 10). A guest writes these: entries that make no sense are passed over. Pure.
"""

import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.trust.variables import GLOBAL, Variable

DEFAULT_PATH = "\\EFI\\BOOT\\BOOTX64.EFI"
"""What firmware starts from a disk that no entry names a file on: section 3.5.1.1."""

_ACTIVE = 0x1
_MAX_ENTRIES = 256
_MAX_NODES = 64
_MESSAGING, _MEDIA, _END = 3, 4, 0x7F
_HARD_DRIVE, _FILE = 1, 4
_NETWORK = {11, 12, 13, 24}
"""Messaging nodes of no disk: MAC, IPv4, IPv6, URI."""

_LONGEST_DESCRIPTION = 2048  # bytes


@dataclass(frozen=True)
class BootEntry:
    number: int
    description: str
    partition: uuid.UUID | None
    """GUID of the GPT partition that holds the file; None: any that the firmware finds."""
    path: str
    """By backslashes."""


def boot_entries(variables: Iterable[Variable]) -> tuple[BootEntry, ...]:
    """The entries that start a file on a disk, in the firmware's order.

    An entry for a whole device, as firmware makes them itself, stands for the default path.
    """
    values = {each.name: each.value for each in variables if each.vendor == GLOBAL}
    order = values.get("BootOrder", b"")[: 2 * _MAX_ENTRIES]
    found = []
    for (number,) in dict.fromkeys(struct.iter_unpack("<H", order[: len(order) & ~1])):
        entry = _entry(number, values.get(f"Boot{number:04X}", b""))
        if entry is not None:
            found.append(entry)
    return tuple(found)


def _entry(number: int, option: bytes) -> BootEntry | None:
    if len(option) < 8:
        return None
    attributes, length = struct.unpack_from("<LH", option)
    last = min(len(option) - 1, 6 + _LONGEST_DESCRIPTION)
    end = next((at for at in range(6, last, 2) if option[at : at + 2] == b"\0\0"), None)
    if not attributes & _ACTIVE or end is None:
        return None
    description = option[6:end].decode("utf-16-le", errors="replace")
    nodes = _nodes(option[end + 2 : end + 2 + length])
    kinds = {(kind, sub) for kind, sub, _ in nodes}
    if not nodes or any(kind == _MESSAGING and sub in _NETWORK for kind, sub in kinds):
        return None
    partition, path = None, ""
    for kind, sub, body in nodes:
        if kind == _MEDIA and sub == _HARD_DRIVE and len(body) >= 38:
            # SignatureType 2: the GUID of a GPT entry.
            partition = uuid.UUID(bytes_le=body[20:36]) if body[37] == 2 else None
        elif kind == _MEDIA and sub == _FILE:
            path += body.decode("utf-16-le", errors="replace").split("\0", 1)[0]
        elif kind == _MEDIA:
            return None  # a file inside the firmware: its menu, its shell
    return BootEntry(number, description, partition, path or DEFAULT_PATH)


def _nodes(path: bytes) -> list[tuple[int, int, bytes]]:
    """Kind, sub-kind and body of the nodes of a device path, up to its end."""
    found: list[tuple[int, int, bytes]] = []
    position = 0
    while position + 4 <= len(path) and len(found) < _MAX_NODES:
        kind, sub, length = struct.unpack_from("<BBH", path, position)
        if kind == _END or length < 4 or position + length > len(path):
            break
        found.append((kind, sub, path[position + 4 : position + length]))
        position += length
    return found
