"""What pools without folders share: a volume is known by its flat name, a draft by that and `.part`.

A kind says how things of such names are listed, moved and removed; the order of these is the same for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection

from holdfast.host.processes import Identity
from holdfast.spec.attachment import Place
from holdfast.spec.pool import PoolHealth
from holdfast.spec.vm import VolumeFormat
from holdfast.storage.pools.names import PART, flat_name, of_vm, renames
from holdfast.storage.pools.pool import PoolState, VolumeId, require_qcow2, vanished


class FlatPool(ABC):
    """The part of `Pool` that needs no more than names."""

    name: str

    @property
    def format(self) -> VolumeFormat:
        return VolumeFormat.QCOW2

    @abstractmethod
    async def state(self) -> PoolState: ...

    @abstractmethod
    async def grant(self, volume: VolumeId, identity: Identity | None) -> None: ...

    @abstractmethod
    async def _volumes(self) -> Collection[str]:
        """Names of what is ours. Raises PoolVanished."""

    @abstractmethod
    async def _move(self, before: str, after: str) -> None: ...

    @abstractmethod
    async def _remove(self, name: str) -> None: ...

    @abstractmethod
    async def _complete(self, name: str) -> None:
        """Called for a volume's name before its draft gets it."""

    async def left(self, volume: VolumeId) -> Place | None:
        """None: a device or an image is written anew from its beginning."""
        return None

    async def _begin(self, volume: VolumeId) -> None:
        require_qcow2(self.name, volume)
        state = await self.state()
        if state.health is PoolHealth.VANISHED:
            raise vanished(self.name, state.reason)
        await self.discard(volume)

    async def publish(self, volume: VolumeId, identity: Identity | None) -> None:
        name, there = flat_name(volume), await self._volumes()
        if name + PART in there:
            await self._complete(name)
            if name in there:
                await self._remove(name)
            await self._move(name + PART, name)
        await self.grant(volume, identity)

    async def discard(self, volume: VolumeId) -> None:
        if flat_name(volume) + PART in await self._volumes():
            await self._remove(flat_name(volume) + PART)

    async def remove(self, volume: VolumeId) -> None:
        there = await self._volumes()
        for name in (flat_name(volume), flat_name(volume) + PART):
            if name in there:
                await self._remove(name)

    async def has(self, volume: VolumeId) -> bool:
        return flat_name(volume) in await self._volumes()

    async def names(self, vm: str) -> list[str]:
        return of_vm(await self._volumes(), vm)

    async def rename(self, old: str, new: str) -> None:
        for before, after in renames(await self._volumes(), old, new, self.name):
            await self._move(before, after)
