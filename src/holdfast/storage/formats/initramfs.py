"""What an initial RAM disk holds, as far as the names of kernel modules go.

The Linux kernel's Documentation/driver-api/early-userspace/buffer-format: cpio archives (newc), one after
another, with zeros between them; the last one may be compressed.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass

_HEADER = 110
_MAGICS = (b"070701", b"070702")
_MOST_ENTRIES = 200_000
_LONGEST_NAME = 4096
_COMPRESSIONS = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
_MODULES = b"lib/modules/"
_LONGEST_PATH = 256
_ENDING = re.compile(rb"(?:\.xz|\.gz|\.zst)?\0")


class NotInitramfs(ValueError):
    """Neither an archive nor a compressed one; its text says how."""


@dataclass(frozen=True)
class Front:
    """What stands before the compressed part."""

    compression: str | None
    """Name of the program that unpacks the rest; None: there is none."""
    offset: int
    """Bytes to where it begins."""


class ModuleSearch:
    """Which of some kernel modules an archive holds, whose bytes come in pieces.

    By the names of its files: whole paths with a zero behind them. Lists of modules have neither.
    """

    def __init__(self, wanted: Collection[str]) -> None:
        self.found: set[str] = set()
        self._needles = {name: f"/{name}.ko".encode() for name in wanted}
        self._tail = b""

    def feed(self, piece: bytes) -> None:
        data = self._tail + piece
        for name, needle in self._needles.items():
            if name not in self.found and _holds(data, needle):
                self.found.add(name)
        self._tail = data[-2 * _LONGEST_PATH :]


def _holds(data: bytes, needle: bytes) -> bool:
    """Its work is bounded by the length of `data`, whatever that is made of."""
    at = data.find(needle)
    while at >= 0:
        before = data[max(0, at - _LONGEST_PATH) : at]
        path = before[before.rfind(_MODULES) :] if _MODULES in before else b""
        if path and not {0, 10} & set(path) and _ENDING.match(data, at + len(needle)):
            return True
        at = data.find(needle, at + 1)
    return False


def front(fd: int, size: int, search: ModuleSearch) -> Front:
    """The archives that are not compressed, told to `search`, and what comes after them.

    Raises NotInitramfs.
    """
    at = entries = 0
    while at < size:
        head = os.pread(fd, _HEADER, at)
        if head[:1] == b"\0":
            at += 4  # archives begin at a multiple of it
            zeros = os.pread(fd, 65536, at)
            at += (len(zeros) - len(zeros.lstrip(b"\0"))) // 4 * 4
            continue
        if not head.startswith(_MAGICS):
            break
        entries += 1
        name_size, data_size = _number(head[94:102]), _number(head[54:62])
        if entries > _MOST_ENTRIES or not 0 < name_size <= _LONGEST_NAME:
            raise NotInitramfs("an archive of too many files, or with a name that is too long")
        name = os.pread(fd, name_size, at + _HEADER)
        search.feed(name)
        at += -(-(_HEADER + name_size) // 4) * 4 + -(-data_size // 4) * 4
    head = os.pread(fd, 8, at)
    compression = next((name for magic, name in _COMPRESSIONS if head.startswith(magic)), None)
    if compression is None and (at < size or not entries):
        raise NotInitramfs(f"no archive, and not compressed in a way that is known, at byte {at}")
    return Front(compression, at)


def _number(digits: bytes) -> int:
    try:
        return int(digits, 16)
    except ValueError as error:
        raise NotInitramfs("a header without numbers") from error
