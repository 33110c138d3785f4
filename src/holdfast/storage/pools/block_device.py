"""A plain block device of the host as a pool: a volume group and a thin pool that we make on it.

Nothing that has a signature of any kind is overwritten unless that was asked for, and nothing that
is in use ever.
"""

import asyncio
import os
import stat
from pathlib import Path

from holdfast.host.block_devices import NotABlockDevice
from holdfast.host.processes import Processes
from holdfast.spec.errors import Conflict
from holdfast.spec.pool import BlockDevicePoolSpec, LvmThinPoolSpec
from holdfast.storage.pools.lvm import Lvm, LvmFailed
from holdfast.storage.pools.lvm_thin import LvmThinPool

THIN_POOL = "volumes"


class DeviceNotEmpty(Conflict):
    id = "device-not-empty"


class DeviceInUse(Conflict):
    id = "device-in-use"


class BlockDevicePool(LvmThinPool):
    """Fits `Pool`."""

    def __init__(
        self,
        name: str,
        spec: BlockDevicePoolSpec,
        pool_id: str,
        lvm: Lvm,
        processes: Processes,
        *,
        erase: bool = False,
        devices: Path = Path("/dev"),
    ) -> None:
        """`erase`: what `make` finds on the device may go."""
        group = f"holdfast-{pool_id[:8]}"
        super().__init__(name, LvmThinPoolSpec(group=group, thin_pool=THIN_POOL), pool_id, lvm, devices)
        self.spec = spec
        self._device = spec.device
        self._processes = processes
        self._erase = erase

    async def make(self) -> None:
        """Raises NotABlockDevice, DeviceInUse, DeviceNotEmpty, LvmFailed, ProgramMissing."""
        device = self._device
        await asyncio.to_thread(_require_unused, device)
        found = await self._signatures(device)
        if found and not self._erase:
            raise DeviceNotEmpty(
                f"{device} holds something: {found}",
                value=str(device),
                cure="Name another device, or say --erase to destroy what is on it.",
            )
        if found:
            await self._tool("wipefs", "--all", str(device))
        await self._lvm.run("vgcreate", "--yes", self._group, str(device))
        # Some room is left for the tables, which LVM extends by itself.
        await self._lvm.run(
            *("lvcreate", "--yes", "--type", "thin-pool", "--extents", "95%FREE"),
            *("--name", THIN_POOL, self._group),
        )
        await super().make()

    async def unmake(self) -> None:
        """The group goes with the pool, which is empty."""
        await self._lvm.run("vgremove", "--yes", "--force", self._group)

    async def _signatures(self, device: Path) -> str:
        said = await self._tool("wipefs", "--no-act", "--noheadings", "--output", "TYPE", str(device))
        return ", ".join(sorted(set(said.split())))

    async def _tool(self, *argv: str) -> str:
        done = await self._processes.run(argv, owner="host", timeout=60.0)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-500:]
            raise LvmFailed(f"{argv[0]} failed: {said}", value=argv[-1], cure="Look in the kernel's log.")
        return done.stdout.decode(errors="replace")


def _require_unused(device: Path) -> None:
    try:
        is_block = stat.S_ISBLK(device.stat().st_mode)
    except OSError:
        is_block = False
    if not is_block:
        raise NotABlockDevice(
            f"{device} is not a block device of this host",
            value=str(device),
            cure="See `lsblk`; a directory is a pool of kind directory.",
        )
    try:
        # Alone: the kernel refuses what is mounted, part of a RAID or a group, or swapped to.
        os.close(os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        raise DeviceInUse(
            f"{device} is in use: {error.strerror}",
            value=str(device),
            cure="Unmount it, or take it out of the group it belongs to.",
        ) from error
