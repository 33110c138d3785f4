"""Files of an ext2, ext3 or ext4 file system, read by path.

The Linux kernel's Documentation/filesystems/ext4. A guest wrote it: tables are followed only as far as
there are blocks, folders only so long as they may be, and symbolic links not at all. A journal that waits
to be replayed is not: the last changes may be missing.
"""

import struct
from collections.abc import Iterator

from holdfast.storage.formats.qcow2_chain import Bytes
from holdfast.storage.formats.runs import NotReadable, Run, Runs, content

_SUPERBLOCK, _MAGIC = 1024, 0xEF53
_LONGEST_FOLDER = 4 * 1024 * 1024
_MOST_NODES = 4096
"""Of the tree of a file's extents."""
_DEEPEST_TREE, _DEEPEST_PATH = 5, 16
_ROOT = 2
_FOLDER, _FILE = 0x4000, 0x8000
_EXTENTS, _ENCRYPTED, _INLINE = 0x80000, 0x800, 0x10000000
_EXTENT_MAGIC = 0xF30A
_WITHOUT_DATA = 32768
"""An extent of more blocks than this was set aside and never written; so many less is its length."""
_READABLE = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
"""Incompatible features that do not change what is read here: types in folders, journal, extents, 64 bits,
multiple mounts, flexible groups, large attributes, checksum seed, large folders; data in inodes, encryption
and folded case are seen where they matter."""
_64_BIT = 0x80


class NotExt4(NotReadable):
    """No such file system, or one that contradicts itself."""


class Ext4:
    """A file system that begins at byte `start` of `disk` and has `size` bytes at most.

    Raises NotExt4.
    """

    def __init__(self, disk: Bytes, start: int, size: int) -> None:
        self._disk, self._start = disk, start
        if size < 2 * _SUPERBLOCK:
            raise NotExt4("no room for a superblock")
        raw = disk.read(start + _SUPERBLOCK, 1024)
        inodes, blocks, first, log_block, self._per_group = struct.unpack_from("<LL12xLL12xL", raw)
        magic, revision, inode_size = struct.unpack_from("<H18xL8xH", raw, 0x38)
        (incompatible,) = struct.unpack_from("<L", raw, 0x60)
        (descriptor_size,) = struct.unpack_from("<H", raw, 0xFE)
        if magic != _MAGIC:
            raise NotExt4("no superblock")
        if incompatible & ~_READABLE:
            raise NotExt4(f"features that are not known ({incompatible & ~_READABLE:#x})")
        if incompatible & _64_BIT:
            blocks += struct.unpack_from("<L", raw, 0x150)[0] << 32
        self._block = 1024 << log_block if log_block <= 6 else 0
        self._inode_size = inode_size if revision else 128
        self._descriptor = descriptor_size if incompatible & _64_BIT else 32
        if (
            not self._block
            or not 128 <= self._inode_size <= self._block
            or not 32 <= self._descriptor <= 1024
        ):
            raise NotExt4("a superblock that contradicts itself")
        if not self._per_group or first > 1 or not 0 < blocks <= size // self._block:
            raise NotExt4("a file system that does not fit")
        self._inodes, self._blocks, self._table = inodes, blocks, (first + 1) * self._block

    def names(self, path: str) -> tuple[str, ...]:
        """What a folder holds, without `.` and `..`; empty where there is no such folder."""
        inode = self._find(path)
        if inode is None or inode.kind != _FOLDER:
            return ()
        return tuple(name for name in self._entries(inode) if name not in (".", ".."))

    def read(self, path: str, limit: int) -> bytes | None:
        """The content of a file; None where there is none of this path. Raises NotExt4 beyond `limit`."""
        runs = self.runs(path, limit)
        if runs is None:
            return None
        return content(self._disk, runs)

    def runs(self, path: str, limit: int) -> list[Run] | None:
        """Where the content of a file lies; None where there is none. Raises NotExt4 beyond `limit` bytes."""
        inode = self._find(path)
        if inode is None or inode.kind != _FILE:
            return None
        if inode.size > limit:
            raise NotExt4(f"a file of {inode.size} bytes, more than the {limit} that are read")
        return self._runs(inode, inode.size)

    def _find(self, path: str) -> "_Inode | None":
        parts = [part for part in path.split("/") if part]
        inode = self._inode(_ROOT)
        for part in parts[:_DEEPEST_PATH]:
            if inode.kind != _FOLDER:
                return None
            number = self._entries(inode).get(part)
            if number is None:
                return None
            inode = self._inode(number)
        return inode if len(parts) <= _DEEPEST_PATH else None

    def _inode(self, number: int) -> "_Inode":
        if not 1 <= number <= self._inodes:
            raise NotExt4(f"an inode {number} that cannot be")
        group, index = divmod(number - 1, self._per_group)
        at = self._start + self._table + group * self._descriptor
        raw = self._disk.read(at, self._descriptor)
        (table,) = struct.unpack_from("<L", raw, 8)
        if self._descriptor >= 64:
            table += struct.unpack_from("<L", raw, 0x28)[0] << 32
        place = self._place(table, 1) + index * self._inode_size
        return _Inode(self._disk.read(place, 128))

    def _place(self, block: int, count: int) -> int:
        """Where blocks begin on the disk."""
        if not 0 < block <= self._blocks - count:
            raise NotExt4(f"a block {block} beyond its end")
        return self._start + block * self._block

    def _entries(self, folder: "_Inode") -> dict[str, int]:
        """Inodes by name. Blocks of an index look like empty ones ("Hash Tree Directories")."""
        if folder.size > _LONGEST_FOLDER:
            raise NotExt4(f"a folder of {folder.size} bytes")
        found: dict[str, int] = {}
        for at, length in self._runs(folder, folder.size):
            raw = self._disk.read(at, length) if at >= 0 else b""
            for start in range(0, len(raw), self._block):
                found.update(_in_block(raw[start : start + self._block]))
        return found

    def _runs(self, inode: "_Inode", wanted: int) -> list[Run]:
        if inode.flags & (_INLINE | _ENCRYPTED):
            raise NotExt4("a file that is encrypted, or lies in its inode")
        blocks = self._by_extents(inode) if inode.flags & _EXTENTS else self._by_map(inode)
        runs = Runs(wanted)
        for logical, physical, count in blocks:
            if runs.covered >= wanted:
                break
            place = self._place(physical, count) if physical else -1
            runs.add(logical * self._block, place, count * self._block)
        runs.add(wanted, -1, 0)
        return runs.found

    def _by_extents(self, inode: "_Inode") -> Iterator[tuple[int, int, int]]:
        """First block of the file, block of the disk (0: none) and how many, in order."""
        yield from self._extents(inode.map, _DEEPEST_TREE, iter(range(_MOST_NODES)))

    def _extents(self, node: bytes, levels: int, budget: Iterator[int]) -> Iterator[tuple[int, int, int]]:
        magic, entries, _, depth = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or 12 * (entries + 1) > len(node) or depth > levels:
            raise NotExt4("no extents where some should be")
        if next(budget, None) is None:
            raise NotExt4("a file in too many pieces")
        for at in range(12, 12 * (entries + 1), 12):
            if depth:
                _, low, high = struct.unpack_from("<LLH", node, at)
                child = self._disk.read(self._place(low | high << 32, 1), self._block)
                # Each level counts down, so that a tree in a circle ends.
                yield from self._extents(child, depth - 1, budget)
            else:
                logical, count, high, low = struct.unpack_from("<LHHL", node, at)
                if count > _WITHOUT_DATA:
                    yield logical, 0, count - _WITHOUT_DATA
                else:
                    yield logical, low | high << 32, count

    def _by_map(self, inode: "_Inode") -> Iterator[tuple[int, int, int]]:
        """ext2's and ext3's: 12 blocks of the file itself, those of a table, those of a table of tables."""
        numbers = struct.unpack("<15L", inode.map)
        last = -(-inode.size // self._block)
        for logical, block in zip(range(last), self._mapped(numbers), strict=False):
            yield logical, block, 1

    def _mapped(self, numbers: tuple[int, ...]) -> Iterator[int]:
        yield from numbers[:12]
        yield from self._pointers(numbers[12])
        for table in self._pointers(numbers[13]):
            yield from self._pointers(table)

    def _pointers(self, table: int) -> tuple[int, ...]:
        count = self._block // 4
        if not table:
            return (0,) * count
        return struct.unpack(f"<{count}L", self._disk.read(self._place(table, 1), self._block))


class _Inode:
    def __init__(self, raw: bytes) -> None:
        mode, self.flags = struct.unpack_from("<H30xL", raw)
        low, high = struct.unpack_from("<L100xL", raw, 4)
        self.kind = mode & 0xF000
        self.size = low | high << 32
        self.map = raw[0x28:0x64]


def _in_block(raw: bytes) -> Iterator[tuple[str, int]]:
    at = 0
    while at + 8 <= len(raw):
        inode, length, name_length = struct.unpack_from("<LHB", raw, at)
        if length < 8 or at + length > len(raw) or name_length > length - 8:
            return  # a damaged block; the others may be whole
        if inode and name_length:
            yield raw[at + 8 : at + 8 + name_length].decode(errors="replace"), inode
        at += length
