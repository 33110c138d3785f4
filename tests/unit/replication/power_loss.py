"""A file layer that remembers every call, and what a folder may look like after the power went.

Durable is what was synced: data of a file by its `sync`, names by `sync_folder`. Of the rest any part may
have reached the disk: a write whole, not at all, or torn at 512 bytes; names in any state since the last
sync, but in the order that they were changed in.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.replication.store.files import Data, HostFiles

_SECTOR = 512


@dataclass
class _Inode:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | int | None]] = field(default_factory=list)
    """Writes (offset, data), and cuts: (size, None) to a size, (offset, length) to zeroes."""


def _apply(content: bytearray, change: tuple[int, bytes | int | None]) -> None:
    at, what = change
    if what is None:
        del content[at:]
        content.extend(bytes(at - len(content)))
    else:
        data = bytes(what) if isinstance(what, int) else what
        content.extend(bytes(max(0, at + len(data) - len(content))))
        content[at : at + len(data)] = data


class Recording(HostFiles):
    """The host's files, and beside them a model of what of them is durable."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self._inodes: dict[Path, _Inode] = {}
        self._durable_names: dict[Path, _Inode] = {}
        self._name_changes: list[tuple[Path, _Inode | None]] = []
        self.calls = 0
        self.die_at: int | None = None

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.die_at:
            raise PowerLost

    def _inode(self, path: Path) -> _Inode:
        if path not in self._inodes:
            self._inodes[path] = _Inode()
            self._name_changes.append((path, self._inodes[path]))
        return self._inodes[path]

    def write(self, path: Path, offset: int, data: Data) -> None:
        self._inode(path).pending.append((offset, bytes(data)))
        self._count()
        super().write(path, offset, data)

    def truncate(self, path: Path, size: int) -> None:
        self._inode(path).pending.append((size, None))
        self._count()
        super().truncate(path, size)

    def discard(self, path: Path, offset: int, length: int) -> None:
        inode = self._inode(path)
        size = path.stat().st_size if path.exists() else 0
        if min(length, size - offset) > 0:
            inode.pending.append((offset, min(length, size - offset)))
        self._count()
        super().discard(path, offset, length)

    def sync(self, path: Path) -> None:
        self._count()
        super().sync(path)
        inode = self._inode(path)
        for change in inode.pending:
            _apply(inode.durable, change)
        inode.pending.clear()

    def rename(self, path: Path, new: Path) -> None:
        inode = self._inodes.pop(path)
        self._inodes[new] = inode
        self._name_changes += [(path, None), (new, inode)]
        self._count()
        super().rename(path, new)

    def remove(self, path: Path) -> None:
        if self._inodes.pop(path, None) is not None:
            self._name_changes.append((path, None))
        self._count()
        super().remove(path)

    def sync_folder(self, path: Path) -> None:
        self._count()
        super().sync_folder(path)
        left = []
        for change in self._name_changes:
            if change[0].parent == path:
                self._rename_durably(self._durable_names, change)
            else:
                left.append(change)
        self._name_changes = left

    @staticmethod
    def _rename_durably(names: dict[Path, _Inode], change: tuple[Path, _Inode | None]) -> None:
        path, inode = change
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode

    def after_power_loss(self, root: Path, chance: random.Random) -> None:
        """Write what may be left into an empty folder."""
        names = dict(self._durable_names)
        for change in self._name_changes[: chance.randint(0, len(self._name_changes))]:
            self._rename_durably(names, change)
        for path, inode in names.items():
            content = bytearray(inode.durable)
            for at, what in inode.pending:
                fate = chance.random()
                if fate < 0.4:
                    continue
                if isinstance(what, bytes) and fate < 0.7 and len(what) > _SECTOR:
                    cut = chance.randrange(0, len(what), _SECTOR)
                    _apply(content, (at, what[:cut]) if chance.random() < 0.5 else (at + cut, what[cut:]))
                else:
                    _apply(content, (at, what))
            target = root / path.relative_to(self._root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


class PowerLost(BaseException):
    """Nothing that stands in an `except Exception` or tidies up may hold it."""
