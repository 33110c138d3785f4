"""What a guest wrote, brought to its disks' files beside it, just before QEMU does so while the guest waits.

A node is put under a disk, or taken away, by `blockdev-reopen`, in which QEMU has no writes under way and
writes out the disk (block.c, bdrv_reopen_prepare). After a second of writes that took most of what a cycle
cost the guest; what was written out before costs it nothing.

All of this may fail or take too long: then QEMU does it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from holdfast.host.files import write_out
from holdfast.spec.attachment import Layer
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import Disk

_SECONDS = 2.0
"""That a cycle waits for it at most."""
_THREADS = 4

Chains = Callable[[str, Disk], Sequence[Layer]]
"""The layers of a VM's disk, top first, by the VM's name. Raises a HoldfastError where there are none."""


class WritingOut:
    """For all VMs of a host."""

    def __init__(self, chains: Chains = lambda _name, _disk: ()) -> None:
        self._chains = chains
        self._threads = ThreadPoolExecutor(_THREADS, "replica-writing-out")
        self._busy: set[str] = set()
        """Names of VMs; of one whose storage hangs no more threads wait."""

    async def write_out(self, name: str, disks: Iterable[Disk]) -> None:
        """Return once what a VM wrote to these disks until now is in their files, or after 2 s."""
        if name in self._busy:
            return
        self._busy.add(name)
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, _write_out, [*self._written(name, disks)]
        )
        work.add_done_callback(lambda _: self._busy.discard(name))
        await asyncio.wait({work}, timeout=_SECONDS)

    def _written(self, name: str, disks: Iterable[Disk]) -> Iterable[Path]:
        for disk in disks:
            with contextlib.suppress(HoldfastError):  # not a file of this host, such as an image of Ceph's
                yield from (layer.path for layer in self._chains(name, disk)[:1])


def _write_out(paths: Iterable[Path]) -> None:
    for path in paths:
        write_out(path)  # where it fails QEMU finds it, too, and tells the guest
