"""What the running kernel has: modules (loaded, loadable, or not at all) and options. Nothing is kept."""

import gzip
import platform
import re
import zlib
from enum import StrEnum
from pathlib import Path

_LARGEST_CONFIG = 4 * 1024 * 1024


class ModuleState(StrEnum):
    LOADED = "loaded"
    """Or built in."""
    LOADABLE = "loadable"
    ABSENT = "absent"


def module_state(root: Path, name: str) -> ModuleState:
    """State of a module by its name with underscores, from /sys/module and kmod's index files."""
    if (root / "sys/module" / name).is_dir():
        return ModuleState.LOADED
    release = _release(root)
    # Underscores and dashes are one and the same to kmod; files may be compressed.
    file_name = re.compile(rf"/{name.replace('_', '[-_]')}\.ko(?:\.\w+)?(?::|$)", re.MULTILINE)
    for index, state in (("modules.builtin", ModuleState.LOADED), ("modules.dep", ModuleState.LOADABLE)):
        try:
            text = (root / "lib/modules" / release / index).read_text(errors="replace")
        except OSError:
            continue
        if file_name.search(text):
            return state
    return ModuleState.ABSENT


def built_with(root: Path, option: str) -> bool | None:
    """Whether the kernel has an option, built in or as a module; None where its settings lie nowhere.

    An option whose own needs are not met is not mentioned in the settings at all.
    """
    for path in (root / "proc/config.gz", root / "boot" / f"config-{_release(root)}"):
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                text = file.read(_LARGEST_CONFIG)
        except (OSError, EOFError, zlib.error):
            continue
        return re.search(rf"^{option}=[ym]$".encode(), text, re.MULTILINE) is not None
    return None


def _release(root: Path) -> str:
    try:
        return (root / "proc/sys/kernel/osrelease").read_text().strip()
    except OSError:
        return platform.release()
