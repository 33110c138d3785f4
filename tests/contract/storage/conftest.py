"""A store of images, volumes and tools in a folder that other users may pass through."""

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Identity, Processes
from holdfast.storage.images import ImageStore
from holdfast.storage.pools.book import Pools
from holdfast.storage.volumes import Volumes

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "guests")]

from storage_rooms import Rooms


@pytest.fixture
async def rooms() -> AsyncIterator[Rooms]:
    root = Path(tempfile.mkdtemp(prefix="hf-storage-"))
    root.chmod(0o711)
    state = StateFolder(root / "a,b: c", root / "r")  # characters that QEMU's option syntax would split at
    state.prepare()
    catalog, processes = Catalog.open(state.catalog), Processes(state)
    images = ImageStore(catalog, state)
    events = EventLog(catalog)
    pools = Pools(catalog, events, state, processes)
    identity = Identity(64321, 64321) if os.geteuid() == 0 else None
    yield Rooms(state, catalog, events, processes, images, pools, Volumes(images, pools, processes), identity)
    catalog.close()
    assert processes.find() == []
    shutil.rmtree(root)
