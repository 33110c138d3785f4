"""What must be looked at now and then, since nothing reports it: logs that guests make grow, free space."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from holdfast.host.reserve import SpaceReserve

_EVERY = 60.0  # seconds
_LONGEST_LOG = 8 * 1024 * 1024
_KEPT = 4 * 1024 * 1024


async def keep_house(reserve: SpaceReserve, folders: Callable[[], Iterable[Path]]) -> None:
    """For ever: room kept for records; the console logs of running VMs cut that have grown too long."""
    while True:
        await asyncio.to_thread(reserve.keep)
        await asyncio.sleep(_EVERY)
        for folder in folders():
            await asyncio.to_thread(trim, folder / "console.log")


def trim(log: Path, longest: int = _LONGEST_LOG, kept: int = _KEPT) -> None:
    """Keep the end of a log that QEMU has open for appending; what it writes meanwhile may be lost."""
    with contextlib.suppress(FileNotFoundError):
        # The file is the VM's user's: never follow what may stand in its place.
        fd = os.open(log, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size > longest:
                end = os.pread(fd, kept, size - kept)
                os.ftruncate(fd, 0)
                os.pwrite(fd, end, 0)
        finally:
            os.close(fd)
