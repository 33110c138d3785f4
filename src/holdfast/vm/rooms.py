"""The rooms that a VM is composed of, joined by the daemon and handed to every owner."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from holdfast.catalog.events import EventLog
from holdfast.host.cgroups import VmGroups
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Identity, Processes
from holdfast.machine.running import Machines
from holdfast.machine.storage_daemon import StorageDaemons
from holdfast.network.ports import Ports
from holdfast.network.switches import SwitchBoard
from holdfast.spec.host import AccelerationVerdict
from holdfast.storage.images import ImageStore
from holdfast.storage.pools.book import Pools
from holdfast.storage.volumes import Volumes
from holdfast.trust.enrollment import VariableStores
from holdfast.trust.firmware_state import FirmwareStates
from holdfast.trust.host_key import HostKeys
from holdfast.trust.key_stores import KeyStores
from holdfast.trust.vtpm import Vtpm
from holdfast.vm.beginnings import Beginnings
from holdfast.vm.checkpoint_records import CheckpointRecords
from holdfast.vm.endings import Endings
from holdfast.vm.records import VmRecords


class AccelerationProbe(Protocol):
    @property
    def known(self) -> AccelerationVerdict | None: ...

    async def verdict(self) -> AccelerationVerdict: ...


class Identities(Protocol):
    """Whom a VM's processes run as."""

    def of(self, number: int) -> Identity | None: ...


class AttestedHost(Protocol):
    """This host before its verifier."""

    async def guard_key(self, vm_id: str, make: bool = False) -> bytes: ...


@dataclass(frozen=True)
class Rooms:
    state: StateFolder
    events: EventLog
    records: VmRecords
    checkpoints: CheckpointRecords
    processes: Processes
    machines: Machines
    storage: StorageDaemons
    switches: SwitchBoard
    ports: Ports
    images: ImageStore
    pools: Pools
    volumes: Volumes
    variables: VariableStores
    keys: KeyStores
    vtpm: Vtpm
    firmware: FirmwareStates
    host_keys: HostKeys
    attested_host: AttestedHost
    acceleration: AccelerationProbe
    groups: VmGroups
    identities: Identities
    beginnings: Beginnings = field(default_factory=Beginnings)
    endings: Endings = field(default_factory=Endings)
    looking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    """Held while the disks of a VM are read for its loaders."""
