"""Files of a FAT12, FAT16 or FAT32 file system, read by path.

Microsoft, "FAT: General Overview of On-Disk Format", version 1.03; long names as of the same. A guest
wrote it: chains of clusters are followed only as far as there are clusters, folders only so long as
they may be, and files only up to a limit.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.storage.formats.qcow2_chain import Bytes

_LONGEST_FOLDER = 2 * 1024 * 1024
"""Bytes; 65,536 entries."""
_LONGEST_RUN = 1024 * 1024
"""Bytes read at once where clusters lie side by side."""
_DELETED, _END = 0xE5, 0x00
_LONG_NAME, _FOLDER, _LABEL = 0x0F, 0x10, 0x08
_MAX_DEPTH = 16


class NotFat(ValueError):
    """No FAT file system, or one that contradicts itself; its text says how."""


@dataclass(frozen=True)
class _Entry:
    names: tuple[str, ...]
    """Short and, where it has one, long; in upper case."""
    folder: bool
    cluster: int
    size: int


class Fat:
    """A file system that begins at byte `start` of `disk` and has `size` bytes at most.

    Raises NotFat.
    """

    def __init__(self, disk: Bytes, start: int, size: int) -> None:
        self._disk, self._start = disk, start
        boot = disk.read(start, 512)
        (sector, per_cluster, reserved, fats, roots, small, _, fat16, _, _, _, large, fat32) = (
            struct.unpack_from("<HBHBHHBHHHLLL", boot, 11)
        )
        if boot[510:] != b"\x55\xaa" or sector not in (512, 1024, 2048, 4096):
            raise NotFat("no boot sector")
        if per_cluster == 0 or per_cluster & (per_cluster - 1) or fats == 0 or reserved == 0:
            raise NotFat("a boot sector that contradicts itself")
        fat_sectors, total = fat16 or fat32, small or large
        root_sectors = -(-roots * 32 // sector)
        data = reserved + fats * fat_sectors + root_sectors
        if fat_sectors == 0 or not data < total <= size // sector:
            raise NotFat("a file system that does not fit")
        self._cluster = sector * per_cluster
        self._clusters = (total - data) // per_cluster
        # The number of clusters alone decides the kind: section "FAT Type Determination".
        self._bits = 12 if self._clusters < 4085 else 16 if self._clusters < 65525 else 32
        if fat_sectors * sector * 8 < (self._clusters + 2) * self._bits:
            raise NotFat("an allocation table that is too short")
        self._fat = start + reserved * sector
        self._data = start + data * sector
        self._root = (start + (data - root_sectors) * sector, roots * 32)
        (self._root_cluster,) = struct.unpack_from("<L", boot, 44)
        self._pieces: dict[int, bytes] = {}

    def read(self, path: str, limit: int) -> bytes | None:
        """The content of a file; None where there is none of this path. Case does not matter.

        Args:
            path: its parts by `\\` or `/`.
            limit: bytes; a larger file raises NotFat.
        """
        parts = [part.upper() for part in path.replace("/", "\\").split("\\") if part]
        if not 1 <= len(parts) <= _MAX_DEPTH:
            return None
        listing = self._root_folder()
        for index, part in enumerate(parts):
            found = next((each for each in _entries(listing) if part in each.names), None)
            if found is None or found.folder is (index == len(parts) - 1):
                return None
            if not found.folder:
                if found.size > limit:
                    raise NotFat(f"a file of {found.size} bytes, more than the {limit} that are read")
                return self._content(found.cluster, found.size)
            listing = self._content(found.cluster, None)
        return None

    def _root_folder(self) -> bytes:
        if self._bits == 32:
            return self._content(self._root_cluster, None)
        return self._disk.read(self._root[0], min(self._root[1], _LONGEST_FOLDER))

    def _content(self, cluster: int, size: int | None) -> bytes:
        """Of a file of `size` bytes, or of a whole folder."""
        wanted = _LONGEST_FOLDER if size is None else size
        parts: list[bytes] = []
        had = 0
        while had < wanted:
            if not 2 <= cluster < self._clusters + 2:
                if size is None and parts:
                    break
                raise NotFat("a chain of clusters that ends early")
            first, count = cluster, 1
            cluster = self._next(cluster)
            while cluster == first + count and count * self._cluster < min(_LONGEST_RUN, wanted - had):
                count += 1
                cluster = self._next(cluster)
            size_of_run = min(count * self._cluster, wanted - had)
            parts.append(self._disk.read(self._data + (first - 2) * self._cluster, size_of_run))
            had += size_of_run
        return b"".join(parts)

    def _next(self, cluster: int) -> int:
        if self._bits == 12:
            pair = int.from_bytes(self._table(cluster + cluster // 2, 2), "little")
            return pair >> 4 if cluster & 1 else pair & 0xFFF
        if self._bits == 16:
            return int.from_bytes(self._table(cluster * 2, 2), "little")
        return int.from_bytes(self._table(cluster * 4, 4), "little") & 0x0FFFFFFF

    def _table(self, at: int, length: int) -> bytes:
        """Bytes of the allocation table, which is read in pieces of 4 KiB and kept."""
        found = b""
        for position in range(at, at + length):
            piece, within = divmod(position, 4096)
            if piece not in self._pieces:
                if len(self._pieces) >= 1024:
                    self._pieces.clear()
                self._pieces[piece] = self._disk.read(self._fat + piece * 4096, 4096)
            found += self._pieces[piece][within : within + 1]
        return found


def _entries(listing: bytes) -> Iterator[_Entry]:
    long: dict[int, str] = {}
    for at in range(0, len(listing) - 31, 32):
        raw = listing[at : at + 32]
        if raw[0] == _END:
            return
        if raw[0] == _DELETED:
            long = {}
        elif raw[11] & 0x3F == _LONG_NAME:
            text = (raw[1:11] + raw[14:26] + raw[28:32]).decode("utf-16-le", errors="replace")
            long[raw[0] & 0x1F] = text
        elif raw[11] & _LABEL:
            long = {}
        else:
            yield _entry(raw, "".join(long[index] for index in sorted(long)).split("\0", 1)[0])
            long = {}


def _entry(raw: bytes, long: str) -> _Entry:
    name = raw[:8].decode("cp437").rstrip()
    ending = raw[8:11].decode("cp437").rstrip()
    short = f"{name}.{ending}" if ending else name
    high, low, size = struct.unpack_from("<H4xHL", raw, 20)
    names = (short.upper(), long.upper()) if long else (short.upper(),)
    return _Entry(names, bool(raw[11] & _FOLDER), high << 16 | low, size)
