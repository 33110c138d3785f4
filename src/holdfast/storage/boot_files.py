"""Files that firmware could start from a VM's disk, read without starting or mounting anything."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from holdfast.spec.attachment import Layer
from holdfast.spec.units import MIB
from holdfast.storage.formats.fat import Fat, NotFat
from holdfast.storage.formats.partitions import partitions
from holdfast.storage.formats.qcow2_chain import Bytes, open_chain

LARGEST = 192 * MIB
"""Bytes of the largest executable that is looked at; unified kernel images have a hundred MiB."""
_MAX_VOLUMES = 16


class TooMuchToRead(ValueError):
    """A disk shows more than the budget allows to be read of it."""


@dataclass
class ReadBudget:
    """How many bytes may yet be read of some disks together, whatever they lead to: files, folders, tables.

    A few sparse clusters can show any number of large files, so a limit for each file bounds nothing.
    """

    left: int

    def take(self, count: int) -> None:
        """Raises TooMuchToRead."""
        if count > self.left:
            self.left = 0
            raise TooMuchToRead("more would have to be read of its disks than is read at once")
        self.left -= count


class _Metered:
    """A disk of which no more is read than a budget allows."""

    def __init__(self, disk: Bytes, budget: ReadBudget) -> None:
        self._disk, self._budget = disk, budget

    @property
    def size(self) -> int:
        return self._disk.size

    def read(self, offset: int, length: int) -> bytes:
        self._budget.take(length)
        return self._disk.read(offset, length)


class BootVolume:
    """One FAT file system of a disk."""

    def __init__(self, fat: Fat, guid: uuid.UUID | None, system: bool) -> None:
        self._fat = fat
        self.guid = guid
        """Of its partition; None on an MBR."""
        self.system = system
        """It is an EFI system partition."""

    def read(self, path: str) -> bytes | None:
        """A file's content; None where there is none. Raises NotFat."""
        return self._fat.read(path, LARGEST)


def volumes(disk: Bytes) -> tuple[BootVolume, ...]:
    """The FAT file systems on a disk, EFI system partitions first; 16 at most."""
    found = []
    for part in sorted(partitions(disk), key=lambda each: not each.system):
        with contextlib.suppress(NotFat):
            found.append(BootVolume(Fat(disk, part.start, part.size), part.guid, part.system))
        if len(found) == _MAX_VOLUMES:
            break
    return tuple(found)


@contextlib.contextmanager
def boot_volumes(
    layers: Sequence[Layer], budget: ReadBudget | None = None
) -> Iterator[tuple[BootVolume, ...]]:
    """Those of the disk that a chain shows, until the end of the block; blocks for some ms.

    Raises, also while files are read:
        FileNotFoundError: a file of the chain is missing.
        ImageNotRecognized, ImageTruncated, ImageDamaged, ImageFeatureUnknown: it cannot be read.
        TooMuchToRead: `budget` is spent.
    """
    with open_chain(layers) as disk:
        yield volumes(_Metered(disk, budget) if budget else disk)
