"""The rooms of storage, joined for a test."""

from dataclasses import dataclass
from pathlib import Path

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Identity, Processes
from holdfast.spec.image import Image, ImageKind, ImageOrigin
from holdfast.storage.images import ImageStore
from holdfast.storage.pools.book import Pools
from holdfast.storage.volumes import Volumes


@dataclass
class Rooms:
    state: StateFolder
    catalog: Catalog
    events: EventLog
    processes: Processes
    images: ImageStore
    pools: Pools
    volumes: Volumes
    identity: Identity | None

    async def put(self, file: Path, name: str, virtual_size: int, kind: ImageKind = ImageKind.DISK) -> Image:
        return await self.images.publish(
            file, name=name, kind=kind, origin=ImageOrigin.BUILT, source="test", virtual_size=virtual_size
        )
