"""Files that firmware could start from a VM's disk, read without starting or mounting anything."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence

from holdfast.spec.attachment import Layer
from holdfast.spec.units import MIB
from holdfast.storage.formats.fat import Fat, NotFat
from holdfast.storage.formats.partitions import partitions
from holdfast.storage.formats.qcow2_chain import Bytes, open_chain

LARGEST = 192 * MIB
"""Bytes of the largest executable that is looked at; unified kernel images have a hundred MiB."""
_MAX_VOLUMES = 16


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
def boot_volumes(layers: Sequence[Layer]) -> Iterator[tuple[BootVolume, ...]]:
    """Those of the disk that a chain shows, until the end of the block; blocks for some ms.

    Raises, also while files are read:
        FileNotFoundError: a file of the chain is missing.
        ImageNotRecognized, ImageTruncated, ImageDamaged, ImageFeatureUnknown: it cannot be read.
    """
    with open_chain(layers) as disk:
        yield volumes(disk)
