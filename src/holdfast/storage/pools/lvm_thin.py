"""Volumes as thin logical volumes, seen as block devices: `/dev/<group>/hf.<VM name>.<volume>`.

What is in each is qcow2 as everywhere, so that checkpoints, bitmaps and moves are the same; a
volume is as large as the disk and the tables that qcow2 needs beside it, and takes up what was
written only. The group carries a tag with the pool's id.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from holdfast.host.processes import Identity
from holdfast.spec.attachment import BlockPlace, Place
from holdfast.spec.errors import Conflict, HoldfastError, NotFound
from holdfast.spec.pool import LvmThinPoolSpec, PoolHealth, PoolSpec
from holdfast.storage.pools.flat import FlatPool
from holdfast.storage.pools.lvm import Lvm, report
from holdfast.storage.pools.names import PART, PREFIX, flat_name
from holdfast.storage.pools.pool import PoolState, VolumeId, device_size, state_of, vanished

_TAG = "holdfast_pool_"
_THIN_POOL = "t"  # first letter of lv_attr, lvs(8)
_PATIENCE = 10.0  # seconds


class ThinPoolMissing(NotFound):
    id = "thin-pool-missing"


class VolumeGroupTaken(Conflict):
    id = "volume-group-taken"


class LvmThinPool(FlatPool):
    """Fits `Pool`."""

    spec: PoolSpec

    def __init__(
        self, name: str, spec: LvmThinPoolSpec, pool_id: str, lvm: Lvm, devices: Path = Path("/dev")
    ) -> None:
        self.name = name
        self.spec = spec
        self._lvm = lvm
        self._devices = devices
        self._group = spec.group
        self._thin_pool = spec.thin_pool
        self._thin = f"{spec.group}/{spec.thin_pool}"
        self._tag = f"{_TAG}{pool_id.replace('-', '')}"

    async def make(self) -> None:
        """Raises ThinPoolMissing, VolumeGroupTaken, LvmFailed, ProgramMissing."""
        found = await report(self._lvm, "lv", "lv_attr,vg_tags", self._thin)
        if not found or not found[0]["lv_attr"].startswith(_THIN_POOL):
            raise ThinPoolMissing(
                f"{self._thin} is no thin pool",
                value=self._thin,
                cure=f"Make one: lvcreate --type thin-pool -l 95%FREE -n {self._thin_pool} {self._group}",
            )
        if _TAG in found[0]["vg_tags"]:
            raise VolumeGroupTaken(
                f"the volume group {self._group} already belongs to a pool",
                value=self._group,
                cure="Delete that pool first; if no daemon knows it any more, remove the group's tag.",
            )
        await self._lvm.run("vgchange", "--addtag", self._tag, self._group)

    async def open(self) -> None:
        await self._lvm.run("vgchange", "--activate", "y", "--setactivationskip", "n", self._group)

    async def unmake(self) -> None:
        await self._lvm.run("vgchange", "--deltag", self._tag, self._group)

    async def state(self) -> PoolState:
        columns = "lv_size,data_percent,metadata_percent,vg_tags"
        try:
            async with asyncio.timeout(_PATIENCE):
                found = await report(self._lvm, "lv", columns, self._thin)
        except TimeoutError:
            return PoolState(PoolHealth.VANISHED, f"lvm has not answered for {_PATIENCE:g} seconds")
        except HoldfastError as error:
            return PoolState(PoolHealth.VANISHED, error.message)
        if not found or self._tag not in found[0]["vg_tags"].split(","):
            return PoolState(PoolHealth.VANISHED, f"{self._thin} is not what the pool was made on")
        capacity = int(found[0]["lv_size"])
        # Full tables stop a thin pool as full data does.
        filled = max(_percent(found[0]["data_percent"]), _percent(found[0]["metadata_percent"]))
        return state_of(capacity, int(capacity * (100 - filled) / 100))

    def place(self, volume: VolumeId) -> Place:
        return BlockPlace(path=self._devices / self._group / flat_name(volume))

    def draft(self, volume: VolumeId) -> Place:
        return BlockPlace(path=self._devices / self._group / (flat_name(volume) + PART))

    async def allocate(self, volume: VolumeId, size: int, length: int = 0) -> Place:
        await self._begin(volume)
        await self._lvm.run(
            *("lvcreate", "--yes", "--wipesignatures", "n", "--setactivationskip", "n"),
            *("--virtualsize", f"{max(device_size(size), length)}b", "--name", flat_name(volume) + PART),
            *("--thinpool", self._thin),
        )
        return self.draft(volume)

    async def copy(self, source: Place, volume: VolumeId) -> bool:
        """A snapshot, where the source is in the same group."""
        if not isinstance(source, BlockPlace) or source.path.parent != self._devices / self._group:
            return False
        await self._begin(volume)
        await self._lvm.run(
            *("lvcreate", "--yes", "--snapshot", "--setactivationskip", "n"),
            *("--name", flat_name(volume) + PART, f"{self._group}/{source.path.name}"),
        )
        return True

    async def grow(self, volume: VolumeId, size: int) -> None:
        found = (await self._volumes()).get(flat_name(volume))
        if found is not None and int(found["lv_size"]) < device_size(size):
            await self._lvm.run(
                "lvextend", "--yes", "--size", f"{device_size(size)}b", f"{self._group}/{flat_name(volume)}"
            )

    async def _complete(self, name: str) -> None:
        """Nothing: a volume has its full size from the beginning."""

    async def grant(self, volume: VolumeId, identity: Identity | None) -> None:
        path = self._devices / self._group / flat_name(volume)
        if identity:
            await asyncio.to_thread(os.chown, path, identity.uid, identity.gid)

    async def used(self, volume: VolumeId) -> int:
        found = (await self._volumes()).get(flat_name(volume))
        return int(int(found["lv_size"]) * _percent(found["data_percent"]) / 100) if found else 0

    async def _move(self, before: str, after: str) -> None:
        await self._lvm.run("lvrename", self._group, before, after)

    async def _remove(self, name: str) -> None:
        await self._lvm.run("lvremove", "--yes", "--force", f"{self._group}/{name}")

    async def _volumes(self) -> dict[str, dict[str, Any]]:
        """Ours by name. Raises PoolVanished."""
        try:
            rows = await report(self._lvm, "lv", "lv_name,lv_size,data_percent", self._group)
        except HoldfastError as error:
            raise vanished(self.name, error.message) from error
        return {row["lv_name"]: row for row in rows if row["lv_name"].startswith(PREFIX)}


def _percent(text: str) -> float:
    return float(text) if text else 0.0
