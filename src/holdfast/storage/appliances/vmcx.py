"""Hyper-V's configuration files (`.vmcx`): a tree of keys in HyperVStorage, a binary key-value store.

Layout as OpenVMM documents it (its guide, "HyperV Storage File Format"): two headers of which the one
with the higher sequence counts, object tables, key tables. Values that stand outside the key tables
(2 KiB and more) and changes that wait in the replay log are not read; `Vmcx` says so.
"""

import struct
import zlib
from dataclasses import dataclass

from holdfast.spec.units import MIB
from holdfast.storage.appliances.bounded_xml import damaged, too_large

LARGEST = 16 * MIB
_SIGNATURE = 0x01282014
_HEADER = struct.Struct("<IIHIIIIQQI")
_HEADERS = (0, 4096)
_FIRST_TABLE = 8192
_OBJECTS, _OBJECT = struct.Struct("<II"), struct.Struct("<BIQIB")
_OBJECT_TABLE, _KEY_TABLE = 1, 2
_TABLE = struct.Struct("<HHHI")
_ENTRY = struct.Struct("<BBIHIIIB")
_OLD_ENTRY_VERSION = 0x0300
_MOST_ENTRIES = 50_000
_MOST_TABLES = 1024
_LONGEST_PATH = 512
_INT, _UINT, _DOUBLE, _STRING, _ARRAY, _BOOL, _NODE = 3, 4, 5, 6, 7, 8, 9
_OUTSIDE = 0x01

Value = int | bool | str


@dataclass(frozen=True)
class Vmcx:
    values: dict[str, Value]
    """Path (`configuration/properties/name`, lower case) to number, truth or text."""
    partly: bool
    """Some values stand where they were not read, or the last change was not finished."""


@dataclass(frozen=True)
class _Key:
    kind: int
    flags: int
    parent: tuple[int, int]
    name: str
    data: bytes


def read_vmcx(data: bytes, name: str) -> Vmcx:
    """Every value that can be read.

    Raises:
        DescriptorTooLarge, DescriptorDamaged: it is none, or contradicts itself.
    """
    if len(data) > LARGEST:
        raise too_large(name, f"has {len(data)} bytes; {LARGEST} are read")
    version, unfinished = _header(data, name)
    keys = _Keys(data, name)
    for at, size in _key_tables(data, name):
        keys.read(at, size)
    values: dict[str, Value] = {}
    outside = False
    for key in keys.found.values():
        if key.kind in (_NODE, _ARRAY):
            continue
        if key.flags & _OUTSIDE:
            outside = True
            continue
        value = _value(key)
        if value is not None:
            values[_path(key, keys.found)] = value
    if not values:
        old = f"; version {version:#x} of the format is not known" if version < _OLD_ENTRY_VERSION else ""
        raise damaged(name, f"it holds no settings{old}")
    return Vmcx(values, outside or unfinished)


def _header(data: bytes, name: str) -> tuple[int, bool]:
    """Version of the format, and whether a change waits in the replay log."""
    found = []
    for at in _HEADERS:
        raw = data[at : at + _HEADER.size]
        if len(raw) < _HEADER.size:
            continue
        signature, checksum, sequence, version, *_, log_at, log_size, _ = _HEADER.unpack(raw)
        if signature == _SIGNATURE and zlib.crc32(raw[:4] + bytes(4) + raw[8:]) == checksum:
            found.append((sequence, version, log_at, log_size))
    if not found:
        raise damaged(name, "it has no header of a Hyper-V configuration that is whole")
    _, version, log_at, log_size = max(found)
    waiting = 0
    if log_size and log_at + 16 <= len(data):
        # Signature, checksum, entries that wait; an empty log has none.
        waiting = int.from_bytes(data[log_at + 8 : log_at + 12], "little")
    return version, waiting != 0


def _key_tables(data: bytes, name: str) -> list[tuple[int, int]]:
    tables: dict[int, int] = {}
    waiting, seen, objects = [_FIRST_TABLE], {_FIRST_TABLE}, 0
    while waiting:
        at = waiting.pop()
        if at + _OBJECTS.size > len(data):
            raise damaged(name, "an object table beyond its end")
        _, count = _OBJECTS.unpack_from(data, at)
        room = (len(data) - at - _OBJECTS.size) // _OBJECT.size
        objects += min(count, room)
        if objects > _MOST_ENTRIES:
            raise too_large(name, f"has more than {_MOST_ENTRIES} objects")
        for index in range(min(count, room)):
            kind, _, offset, size, _ = _OBJECT.unpack_from(data, at + _OBJECTS.size + index * _OBJECT.size)
            if kind == _OBJECT_TABLE and offset not in seen:
                seen.add(offset)
                waiting.append(offset)
            elif kind == _KEY_TABLE:
                tables[offset] = max(size, tables.get(offset, 0))
            if len(tables) > _MOST_TABLES or len(seen) > _MOST_TABLES:
                raise too_large(name, f"has more than {_MOST_TABLES} tables")
    return list(tables.items())


class _Keys:
    """The keys of all tables. Tables that lie over each other are read only as far as the file is long."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._name = data, name
        self._left, self._bytes_left = _MOST_ENTRIES, len(data)
        self.found: dict[tuple[int, int], _Key] = {}
        """By the number of the table and the place in it."""

    def read(self, at: int, size: int) -> None:
        """Raises DescriptorTooLarge, DescriptorDamaged."""
        data, end = self._data, min(at + size, len(self._data))
        if at + _TABLE.size > end:
            raise damaged(self._name, "a key table beyond its end")
        signature, table, _, _ = _TABLE.unpack_from(data, at)
        if signature != 2:
            raise damaged(self._name, "no key table where one should be")
        position = at + _TABLE.size
        while position + _ENTRY.size <= end:
            kind, flags, length, parent, parent_at, _, _, name_length = _ENTRY.unpack_from(data, position)
            if length <= _ENTRY.size or position + length > end:
                return  # the rest of the table is empty
            self._spend(length)
            start = position + _ENTRY.size
            if kind in (_INT, _UINT, _DOUBLE, _STRING, _ARRAY, _BOOL, _NODE):
                key = data[start : start + name_length].split(b"\0", 1)[0].decode(errors="replace").lower()
                body = data[start + name_length : position + length]
                self.found[table, position - at] = _Key(kind, flags, (parent, parent_at), key, body)
            position += length

    def _spend(self, length: int) -> None:
        self._left, self._bytes_left = self._left - 1, self._bytes_left - length
        if self._left < 0 or self._bytes_left < 0:
            raise too_large(
                self._name, f"has more than {_MOST_ENTRIES} keys, or keys that lie over each other"
            )


def _value(key: _Key) -> Value | None:
    data = key.data
    if key.kind in (_INT, _UINT) and len(data) >= 8:
        return int.from_bytes(data[:8], "little", signed=key.kind == _INT)
    if key.kind == _BOOL and len(data) >= 4:
        return any(data[:4])
    if key.kind == _STRING and len(data) >= 4:
        length = int.from_bytes(data[:4], "little")
        return data[4 : 4 + length].decode("utf-16-le", errors="replace").rstrip("\0")
    return None


def _path(key: _Key, keys: dict[tuple[int, int], _Key]) -> str:
    """Names from the root; a circle ends after as many levels as there may be."""
    parts = [key.name]
    parent = key.parent
    while parent in keys and len(parts) < 16:
        parts.append(keys[parent].name)
        parent = keys[parent].parent
    return "/".join(reversed(parts))[:_LONGEST_PATH]
