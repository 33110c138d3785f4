"""Files of an XFS file system, read by path.

"XFS Algorithms & Data Structures" (the kernel's and xfsprogs' documentation), versions 4 and 5. A guest
wrote it: trees are followed only as far as there are blocks, folders only so long as they may be, and
symbolic links not at all. A log that waits to be replayed is not: the last changes may be missing.
"""

import struct
from collections.abc import Iterator

from holdfast.storage.formats.qcow2_chain import Bytes
from holdfast.storage.formats.runs import NotReadable, Run, Runs, content

_LONGEST_FOLDER = 4 * 1024 * 1024
_FOLDER_DATA_ENDS = 1 << 35
"""Bytes of a folder's own address space that hold names; its index stands behind them."""
_MOST_NODES, _MOST_LEVELS = 4096, 8
_DEEPEST_PATH = 16
_FOLDER, _FILE = 0x4000, 0x8000
_LOCAL, _EXTENTS, _TREE = 1, 2, 3
_READABLE = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80
"""Incompatible features that do not change what is read here, or are seen: types in folders, sparse inodes,
UUID of metadata, large times, large counts of extents, exchanged ranges, parents."""
_TYPES, _OLD_TYPES = 0x1, 0x200
_LARGE_COUNT = 1 << 4
_FREE = 0xFFFF


class NotXfs(NotReadable):
    """No such file system, or one that contradicts itself."""


class Xfs:
    """A file system that begins at byte `start` of `disk` and has `size` bytes at most.

    Raises NotXfs.
    """

    def __init__(self, disk: Bytes, start: int, size: int) -> None:
        self._disk, self._start = disk, start
        self._block: int
        self._group_blocks: int
        raw = disk.read(start, 512)
        magic, self._block, blocks = struct.unpack_from(">4sLQ", raw)
        (self._root,) = struct.unpack_from(">Q", raw, 56)
        self._group_blocks, self._groups = struct.unpack_from(">LL", raw, 84)
        version, _, self._inode_size = struct.unpack_from(">HHH", raw, 100)
        self._inode_bits, self._group_bits = raw[123], raw[124]
        folder_bits = raw[192]
        old, incompatible = struct.unpack_from(">L12xL", raw, 200)
        self._newer = version & 0xF == 5
        if magic != b"XFSB" or version & 0xF not in (4, 5):
            raise NotXfs("no superblock")
        if self._newer and incompatible & ~_READABLE:
            raise NotXfs(f"features that are not known ({incompatible & ~_READABLE:#x})")
        self._types = bool(incompatible & _TYPES if self._newer else old & _OLD_TYPES)
        fits = self._block in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
        fits = fits and 256 <= self._inode_size <= min(2048, self._block)
        fits = fits and self._block >> self._inode_bits == self._inode_size and folder_bits <= 7
        if not fits or not 0 < blocks <= size // self._block:
            raise NotXfs("a superblock that contradicts itself")
        if not 0 < self._group_blocks <= 1 << self._group_bits <= 1 << 31:
            raise NotXfs("groups that contradict themselves")
        self._blocks, self._folder_block = blocks, self._block << folder_bits

    def names(self, path: str) -> tuple[str, ...]:
        """What a folder holds, without `.` and `..`; empty where there is no such folder."""
        inode = self._find(path)
        if inode is None or inode.kind != _FOLDER:
            return ()
        return tuple(name for name in self._entries(inode) if name not in (".", ".."))

    def read(self, path: str, limit: int) -> bytes | None:
        """The content of a file; None where there is none of this path. Raises NotXfs beyond `limit`."""
        runs = self.runs(path, limit)
        return None if runs is None else content(self._disk, runs)

    def runs(self, path: str, limit: int) -> list[Run] | None:
        """Where the content of a file lies; None where there is none. Raises NotXfs beyond `limit` bytes."""
        inode = self._find(path)
        if inode is None or inode.kind != _FILE:
            return None
        if inode.size > limit:
            raise NotXfs(f"a file of {inode.size} bytes, more than the {limit} that are read")
        return self._runs(inode, inode.size)

    def _find(self, path: str) -> "_Inode | None":
        parts = [part for part in path.split("/") if part]
        inode = self._inode(self._root)
        for part in parts[:_DEEPEST_PATH]:
            if inode.kind != _FOLDER:
                return None
            number = self._entries(inode).get(part)
            if number is None:
                return None
            inode = self._inode(number)
        return inode if len(parts) <= _DEEPEST_PATH else None

    def _inode(self, number: int) -> "_Inode":
        block, index = number >> self._inode_bits, number & (1 << self._inode_bits) - 1
        at = self._place(block, 1) + index * self._inode_size
        raw = self._disk.read(at, self._inode_size)
        if raw[:2] != b"IN":
            raise NotXfs(f"no inode {number}")
        return _Inode(raw)

    def _place(self, block: int, count: int) -> int:
        """Where blocks begin on the disk; the upper bits of a number are those of the group."""
        group, within = block >> self._group_bits, block & (1 << self._group_bits) - 1
        first = group * self._group_blocks + within
        if group >= self._groups or within + count > self._group_blocks or first + count > self._blocks:
            raise NotXfs(f"a block {block} beyond its end")
        return self._start + first * self._block

    def _entries(self, folder: "_Inode") -> dict[str, int]:
        """Inodes by name."""
        if folder.format == _LOCAL:
            return dict(self._short(folder.fork[: folder.size]))
        found: dict[str, int] = {}
        wanted = min(folder.size, _FOLDER_DATA_ENDS)
        if wanted > _LONGEST_FOLDER:
            raise NotXfs(f"a folder of {wanted} bytes")
        raw = content(self._disk, self._runs(folder, wanted))
        for start in range(0, len(raw), self._folder_block):
            found.update(self._in_block(raw[start : start + self._folder_block]))
        return found

    def _short(self, raw: bytes) -> Iterator[tuple[str, int]]:
        """A folder in its inode: xfs_dir2_sf."""
        if len(raw) < 6:
            return
        count, large = raw[0], raw[1]
        width = 8 if large else 4
        at = 2 + width
        for _ in range(large or count):
            if at + 3 > len(raw):
                return
            name = raw[at + 3 : at + 3 + raw[at]]
            at += 3 + raw[at] + self._types
            number = raw[at : at + width]
            at += width
            if len(number) == width:
                yield name.decode(errors="replace"), int.from_bytes(number, "big")

    def _in_block(self, raw: bytes) -> Iterator[tuple[str, int]]:
        """xfs_dir2_data: names, and in a folder of one block their index at its end."""
        at, end = 64 if self._newer else 16, len(raw)
        if raw[:4] in (b"XD2B", b"XDB3") and end >= 8:
            end -= 8 + 8 * int.from_bytes(raw[-8:-4], "big")
        elif raw[:4] not in (b"XD2D", b"XDD3"):
            return
        while at + 12 <= end:
            tag, length = struct.unpack_from(">HH", raw, at)
            if tag == _FREE:
                if length < 8:
                    return
                at += length
                continue
            number, name_length = struct.unpack_from(">QB", raw, at)
            yield raw[at + 9 : at + 9 + name_length].decode(errors="replace"), number
            at += -(-(11 + name_length + self._types) // 8) * 8

    def _runs(self, inode: "_Inode", wanted: int) -> list[Run]:
        runs = Runs(wanted)
        if inode.format == _EXTENTS:
            extents = _extents(inode.fork, inode.extents)
        elif inode.format == _TREE:
            extents = self._tree(inode.fork, iter(range(_MOST_NODES)))
        else:
            raise NotXfs("a file that lies in its inode, or nowhere")
        for logical, block, count in extents:
            if runs.covered >= wanted:
                break
            runs.add(logical * self._block, self._place(block, count), count * self._block)
        runs.add(wanted, -1, 0)
        return runs.found

    def _tree(self, fork: bytes, budget: Iterator[int]) -> Iterator[tuple[int, int, int]]:
        """xfs_bmdr_block, the root in the inode, and what it leads to."""
        level, count = struct.unpack_from(">HH", fork)
        if not 0 < level <= _MOST_LEVELS:
            raise NotXfs("a tree that is too deep")
        for block in _pointers(fork[4:], count):
            yield from self._below(block, level - 1, budget)

    def _below(self, block: int, level: int, budget: Iterator[int]) -> Iterator[tuple[int, int, int]]:
        if next(budget, None) is None:
            raise NotXfs("a file in too many pieces")
        raw = self._disk.read(self._place(block, 1), self._block)
        magic, found, count = struct.unpack_from(">4sHH", raw)
        # Each level counts down, so that a tree in a circle ends.
        if magic not in (b"BMAP", b"BMA3") or found != level:
            raise NotXfs("no tree of extents where one should be")
        body = raw[72 if self._newer else 24 :]
        if level == 0:
            yield from _extents(body, count)
            return
        for child in _pointers(body, count):
            yield from self._below(child, level - 1, budget)


class _Inode:
    """xfs_dinode."""

    def __init__(self, raw: bytes) -> None:
        mode, version, self.format = struct.unpack_from(">HBB", raw, 2)
        self.kind = mode & 0xF000
        self.size, _, _, extents = struct.unpack_from(">QQLL", raw, 56)
        start = 100
        if version == 3:
            start = 176
            if struct.unpack_from(">Q", raw, 120)[0] & _LARGE_COUNT:
                (extents,) = struct.unpack_from(">Q", raw, 24)
        self.extents: int = extents
        self.fork = raw[start : start + 8 * raw[82]] if raw[82] else raw[start:]


def _extents(raw: bytes, count: int) -> Iterator[tuple[int, int, int]]:
    """xfs_bmbt_rec: 1 bit, 54 of the file's block, 52 of the disk's, 21 of how many."""
    for at in range(0, 16 * min(count, len(raw) // 16), 16):
        high, low = struct.unpack_from(">QQ", raw, at)
        if high >> 63:  # set aside, and never written
            continue
        yield high >> 9 & (1 << 54) - 1, (high & 0x1FF) << 43 | low >> 21, low & (1 << 21) - 1


def _pointers(body: bytes, count: int) -> tuple[int, ...]:
    """Behind as many keys as there is room for."""
    most = len(body) // 16
    if count > most:
        raise NotXfs("a node with more than it has room for")
    return struct.unpack_from(f">{count}Q", body, 8 * most)
