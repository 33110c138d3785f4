"""What `vm import` is told to import: archives, folders, descriptions and disks, each with its files.

Only files that lie in the folder named, and that are no links, belong to a source: a description
that names others gets none of them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.cli.uploading import NoSuchFile
from holdfast.spec.appliance import MAX_FILES
from holdfast.spec.errors import InvalidInput

_DESCRIPTIONS = (".ovf", ".vmcx", ".xml", ".conf")
_DISKS = (".vmdk", ".qcow2", ".qcow", ".img", ".raw", ".vhd", ".vhdx", ".avhdx", ".avhd", ".vpc")
_BESIDE = (*_DISKS, ".gz", ".mf", ".cert", ".nvram", ".fd", ".hfstate")
_DEEPEST = 3
_HYPER_V = "Virtual Machines"


class NothingToImport(InvalidInput):
    id = "nothing-to-import"


class TooManyFiles(InvalidInput):
    id = "too-many-files"


@dataclass(frozen=True)
class LocalSource:
    """One machine: its files by their path within its folder."""

    label: str
    """For people."""
    files: tuple[tuple[str, Path], ...]


def is_url(text: str) -> bool:
    return "://" in text


def sources_at(path: Path, more: list[Path]) -> list[LocalSource]:
    """The sources that a path names: one of a file, any number in a folder.

    Args:
        more: files that belong to it and lie elsewhere.

    Raises:
        NoSuchFile: it is not there.
        NothingToImport: there are none.
        TooManyFiles: the folder holds more than one machine can have.
    """
    beside = [(each.name, each) for each in more]
    for each in (path, *more):
        if not each.exists():
            raise NoSuchFile(f"there is no file {str(each)!r}", value=str(each), cure="Check the path.")
    for each in more:
        if not each.is_file():
            raise _nothing(each)
    if path.is_file():
        return [_of_file(path, beside)]
    if not path.is_dir():
        raise _nothing(path)
    found = [_of_file(each, beside) for each in _beginnings(path)]
    if not found:
        raise _nothing(path)
    return found


def _beginnings(folder: Path) -> list[Path]:
    """The files in a folder that each begin a source; disks only where nothing describes them."""
    everything = sorted(path for _, path in _walk(folder, ("",)))
    archives = [path for path in everything if path.name.lower().endswith(".ova")]
    described = [path for path in everything if path.suffix.lower() in _DESCRIPTIONS]
    if archives or described:
        return [*archives, *described]
    return [path for path in everything if path.suffix.lower() in _DISKS]


def _of_file(path: Path, beside: list[tuple[str, Path]]) -> LocalSource:
    if path.suffix.lower() not in _DESCRIPTIONS:
        return LocalSource(path.name, ((path.name, path), *beside))
    folder = path.parent
    if folder.name == _HYPER_V:
        folder = folder.parent
    here = [(name, each) for name, each in _walk(folder, _BESIDE) if each != path]
    files = ((path.relative_to(folder).as_posix(), path), *here, *beside)
    if len(files) > MAX_FILES:
        raise TooManyFiles(
            f"{str(folder)!r} holds {len(files)} files that could belong to {path.name!r};"
            f" at most {MAX_FILES} can",
            value=len(files),
            cure="Put the description and its disks into a folder of their own.",
        )
    return LocalSource(path.name, files)


def _walk(folder: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Regular files of these endings with their path within the folder; links are passed over."""
    depth = len(folder.parts)
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(folders) if len(here.parts) - depth < _DEEPEST - 1 else []
        for name in sorted(names):
            path = here / name
            if name.lower().endswith(endings) and path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix(), path


def _nothing(path: Path) -> NothingToImport:
    return NothingToImport(
        f"{str(path)!r} is nothing that can be imported",
        value=str(path),
        cure="Name an OVA, an OVF descriptor, a Hyper-V export, a libvirt XML, a Proxmox configuration,"
        " a disk, or a folder that holds them.",
    )
