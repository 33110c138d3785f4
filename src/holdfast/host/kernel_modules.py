"""Whether the running kernel has a module: loaded, loadable, or not at all. Nothing is kept."""

import platform
import re
from enum import StrEnum
from pathlib import Path


class ModuleState(StrEnum):
    LOADED = "loaded"
    """Or built in."""
    LOADABLE = "loadable"
    ABSENT = "absent"


def module_state(root: Path, name: str) -> ModuleState:
    """State of a module by its name with underscores, from /sys/module and kmod's index files."""
    if (root / "sys/module" / name).is_dir():
        return ModuleState.LOADED
    try:
        release = (root / "proc/sys/kernel/osrelease").read_text().strip()
    except OSError:
        release = platform.release()
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
