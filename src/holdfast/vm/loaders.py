"""What the firmware of a VM would start from its disks, found and judged without starting it.

Storage reads the files, trust says who signed them, and the variable store says in which order the
firmware tries. Blocks for some ms a VM.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from holdfast.spec.attachment import Layer
from holdfast.spec.errors import HoldfastError
from holdfast.spec.units import MIB
from holdfast.storage.boot_files import BootVolume, ReadBudget, TooMuchToRead, boot_volumes
from holdfast.storage.formats.fat import NotFat
from holdfast.trust.authenticode import Judgement, Loader, Standing, examine, judge
from holdfast.trust.boot_entries import DEFAULT_PATH, BootEntry
from holdfast.trust.signature_lists import KeyDatabase

log = structlog.get_logger(__name__)

_SECOND = "grubx64.efi"
"""What Shim starts next, from the folder it lies in; it asks the same dbx about it."""
_MAX_LOADERS = 8
_MOST_READ = 512 * MIB
"""Bytes of all disks together; one of the largest loaders has a hundred MiB, most have two."""


@dataclass(frozen=True, eq=False)
class FoundLoader:
    disk: str
    path: str
    loader: Loader
    second: Loader | None = None
    """What lies beside it for Shim to start."""

    def judged(self, db: KeyDatabase, dbx: KeyDatabase) -> Judgement:
        """What the firmware makes of it, and Shim of what comes next."""
        own = judge(self.loader, db, dbx)
        if own.standing is Standing.ACCEPTED and self.second is not None:
            # Shim knows keys of its own, so only a revocation says something of the second.
            next_ = judge(self.second, db, dbx)
            if next_.standing is Standing.REVOKED:
                return next_
        return own


@dataclass(frozen=True)
class Loaders:
    """In the order in which the firmware tries them; where it refuses one it goes on to the next."""

    found: tuple[FoundLoader, ...] = ()
    note: str = ""
    """Why there is none, or may be others."""
    unreadable: bool = False
    """A disk could not be read, or not to its end, so there may be others."""

    def first(self, db: KeyDatabase, dbx: KeyDatabase) -> tuple[FoundLoader, Judgement] | None:
        """The one that starts, else the first that is refused."""
        judged = [(each, each.judged(db, dbx)) for each in self.found]
        started = [pair for pair in judged if pair[1].standing is Standing.ACCEPTED]
        return next(iter(started or judged), None)


def find_loaders(disks: Sequence[tuple[str, Sequence[Layer]]], entries: Iterable[BootEntry]) -> Loaders:
    """Look for what the entries name, and for the default path on every disk.

    Args:
        disks: name and chain (top first) of each, in the order in which the firmware sees them.
    """
    ranked: list[tuple[int, int, FoundLoader]] = []
    notes = []
    budget = ReadBudget(_MOST_READ)
    tries = [*entries, BootEntry(-1, "default", None, DEFAULT_PATH)]
    for number, (disk, layers) in enumerate(disks):
        try:
            with boot_volumes(layers, budget) as volumes:
                for rank, each in _on_disk(disk, volumes, tries):
                    ranked.append((rank, number, each))
        except TooMuchToRead as error:
            log.warning("the loaders of a VM are more than is read", disk=disk, error=str(error))
            notes.append(f"{disk} was not read to its end: {error}")
            break
        except (HoldfastError, NotFat, OSError) as error:
            log.info("a disk's loader could not be read", disk=disk, error=str(error))
            notes.append(f"{disk} could not be read: {error}")
    ranked.sort(key=lambda each: each[:2])
    kept = tuple(dict.fromkeys(each for _, _, each in ranked))[:_MAX_LOADERS]
    note = "; ".join(notes) or ("" if kept else "its disks hold nothing that firmware could start")
    return Loaders(kept, note, bool(notes))


def _on_disk(
    disk: str, volumes: Sequence[BootVolume], tries: Sequence[BootEntry]
) -> Iterator[tuple[int, FoundLoader]]:
    examined: dict[tuple[int, str], FoundLoader | None] = {}
    seconds: dict[tuple[int, str], Loader | None] = {}
    for rank, entry in enumerate(tries):
        for number, volume in enumerate(volumes):
            if entry.partition is not None and entry.partition != volume.guid:
                continue
            key = (number, entry.path.upper())
            if key not in examined:
                if len(examined) >= 4 * _MAX_LOADERS:
                    return
                loader = _loader(volume, entry.path)
                folder, _, name = entry.path.rpartition("\\")
                beside = (number, folder.upper())
                if loader and name.lower() != _SECOND and beside not in seconds:
                    seconds[beside] = _loader(volume, f"{folder}\\{_SECOND}")
                second = seconds.get(beside) if name.lower() != _SECOND else None
                examined[key] = FoundLoader(disk, entry.path, loader, second) if loader else None
            found = examined[key]
            if found is not None:
                yield rank, found
                break


def _loader(volume: BootVolume, path: str) -> Loader | None:
    """What is found out about a file, which itself is let go at once."""
    data = volume.read(path)
    return examine(data) if data is not None else None
