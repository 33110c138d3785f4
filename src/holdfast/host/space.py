"""Room on disks and in memory, asked before something large is begun. Nothing is kept."""

import os
from pathlib import Path

from holdfast.spec.errors import Insufficient
from holdfast.spec.units import format_size


class NoSpace(Insufficient):
    id = "no-space"


class MemoryShort(Insufficient):
    id = "not-enough-memory"


def free_space(path: Path) -> tuple[int, int]:
    """Bytes free for us and bytes in all of the file system that `path` lies on or would lie on."""
    while not path.exists() and path != path.parent:
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def require_space(path: Path, bytes_needed: int) -> None:
    """Pass where the file system of `path` has `bytes_needed` bytes free.

    Raises:
        NoSpace: it has less; the value is what was needed, the detail says what is free.
    """
    free, _ = free_space(path)
    if free < bytes_needed:
        raise NoSpace(
            f"{format_size(bytes_needed)} are needed at {path}, and only {format_size(free)} are free",
            value=bytes_needed,
            cure="Free some space there, for example by deleting images that no VM uses.",
            detail={"path": str(path), "free": free},
        )


def memory_figures(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of memory in all, and what can be had without swapping (MemAvailable of proc(5))."""
    figures = {}
    for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            figures[name] = int(value.split()[0]) * 1024
    return figures["MemTotal"], figures["MemAvailable"]


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be had without swapping."""
    return memory_figures(root)[1]


def require_memory(bytes_needed: int, root: Path = Path("/")) -> None:
    """Pass where a guest of `bytes_needed` bytes can be started now.

    Raises:
        MemoryShort: the host has less; the value is what was asked for.
    """
    total, available = memory_figures(root)
    if bytes_needed > available:
        largest = format_size(total if bytes_needed > total else available)
        what = "has in all" if bytes_needed > total else "has free now"
        raise MemoryShort(
            f"{format_size(bytes_needed)} of memory were asked for, more than the {largest} this host {what}",
            value=bytes_needed,
            cure="Ask for less memory, or stop another VM first.",
            detail={"total": total, "available": available},
        )
