"""The pools of this host: their records, and the one object that speaks for each.

The record is written after the pool was made, and removed before it is let go of; what a crash
leaves between is taken over by the next pool at the same place.
"""

import asyncio
import fnmatch
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from holdfast.catalog.clock import aware, now
from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import PoolRow
from holdfast.host.folders import StateFolder
from holdfast.host.processes import Processes
from holdfast.spec.disk_requests import own_layers
from holdfast.spec.errors import Conflict, HoldfastError, NotFound
from holdfast.spec.ids import new_id
from holdfast.spec.paging import BadSort, Page, PageQuery
from holdfast.spec.pool import (
    LOCAL,
    BlockDevicePoolSpec,
    DirectoryPoolSpec,
    LvmThinPoolSpec,
    NfsPoolSpec,
    PoolCreate,
    PoolHealth,
    PoolSpec,
    PoolSummary,
    PoolView,
    PoolVolumes,
    RbdPoolSpec,
)
from holdfast.spec.vm import Disk, VolumeFormat
from holdfast.storage.pools.block_device import BlockDevicePool
from holdfast.storage.pools.directory import DirectoryPool
from holdfast.storage.pools.lvm import LvmProgram
from holdfast.storage.pools.lvm_thin import LvmThinPool
from holdfast.storage.pools.nfs import NfsPool
from holdfast.storage.pools.pool import Pool, PoolState, VolumeId
from holdfast.storage.pools.rbd import RbdPool
from holdfast.storage.pools.root import PoolPathTaken, RootMark, require_apart

log = structlog.get_logger(__name__)

_Pools = list[Pool]  # `list` is a verb of the book below
_SORTS = ("name", "kind", "created", "health", "capacity", "used", "free", "provisioned")
_SPEC: TypeAdapter[PoolSpec] = TypeAdapter(PoolSpec)
_PATIENCE = 5.0  # seconds that the daemon's start waits for storage
_LOOK = 15.0  # seconds between two looks at every pool's health; most storage reports nothing


class PoolNotFound(NotFound):
    id = "pool-not-found"


class PoolExists(Conflict):
    id = "pool-exists"


class PoolInUse(Conflict):
    id = "pool-in-use"


class PoolUse(Protocol):
    """Whose disks lie in a pool; the room of VMs knows.

    Asked in the very transaction that takes the record away: nobody can begin to need it meanwhile.
    """

    def disks_in(self, session: Session, pool: str | None) -> Sequence[tuple[str, Disk]]:
        """VM's name and disk; None: in the VMs' own folders."""
        ...


class Pools:
    """Owner of the pools of one daemon. `open` before use."""

    def __init__(
        self,
        catalog: Catalog,
        events: EventLog,
        state: StateFolder,
        processes: Processes,
        use: PoolUse | None = None,
    ) -> None:
        self._catalog = catalog
        self._events = events
        self._state = state
        self._processes = processes
        self._use = use
        self._lock = asyncio.Lock()
        own = DirectoryPool(LOCAL, DirectoryPoolSpec(path=state.vms.absolute()), None, state.root)
        self._pools: dict[str, Pool] = {LOCAL: own}
        self._created: dict[str, datetime] = {}
        self._opening: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Know what is recorded, and connect it.

        What cannot be, or takes longer than some seconds, is looked at again by `watch`.
        """

        def read(session: Session) -> Sequence[PoolRow]:
            return session.scalars(select(PoolRow)).all()

        for row in await self._catalog.read(read):
            self.add(self._made(row.id, row.name, _SPEC.validate_python(row.spec)), aware(row.created))

        self._opening = [asyncio.create_task(_opened(pool)) for pool in self.all()]
        await asyncio.wait(self._opening, timeout=_PATIENCE)

    def add(self, pool: Pool, created: datetime | None = None) -> None:
        """Speak for one more pool; its record is the caller's."""
        self._pools[pool.name.lower()] = pool
        if created is not None:
            self._created[pool.name.lower()] = created

    def _made(self, pool_id: str, name: str, spec: PoolSpec, erase: bool = False) -> Pool:
        mark, state, lvm = RootMark(pool_id, self._state.mark), self._state.root, LvmProgram(self._processes)
        match spec:
            case DirectoryPoolSpec():
                return DirectoryPool(name, spec, mark, state)
            case NfsPoolSpec():
                return NfsPool(name, spec, mark, state, self._processes)
            case RbdPoolSpec():
                return RbdPool(name, spec, pool_id, self._processes)
            case LvmThinPoolSpec():
                return LvmThinPool(name, spec, pool_id, lvm)
            case BlockDevicePoolSpec():
                return BlockDevicePool(name, spec, pool_id, lvm, self._processes, erase=erase)

    def of(self, name: str | None) -> Pool:
        """The pool of a name in any case; None: the VMs' own folders. Raises PoolNotFound."""
        found = self._pools.get((name or LOCAL).lower())
        if found is None:
            raise _not_found(name or LOCAL)
        return found

    def all(self) -> _Pools:
        """The daemon's own first, then by name."""
        return sorted(self._pools.values(), key=lambda pool: (pool.name != LOCAL, pool.name.lower()))

    async def create(self, request: PoolCreate) -> PoolView:
        """Raises PoolExists, and what the kind refuses: PoolPathUnusable, PoolPathNotEmpty, PoolPathTaken."""
        async with self._lock:
            if request.name.lower() in self._pools:
                raise PoolExists(
                    f"there is already a pool {request.name!r}",
                    value=request.name,
                    cure="Choose another name.",
                )
            if isinstance(request.spec, DirectoryPoolSpec):
                require_apart(request.spec.path, self._roots())
            if isinstance(request.spec, NfsPoolSpec):
                self._require_alone(request.spec.target)
            pool_id, created = new_id(), now()
            pool = self._made(pool_id, request.name, request.spec, request.erase)
            await pool.make()

            def store(session: Session) -> None:
                row = PoolRow(
                    name=request.name,
                    id=pool_id,
                    kind=request.spec.kind,
                    spec=request.spec.model_dump(mode="json"),
                    created=created,
                )
                session.add(row)
                self._events.append(session, "pool.created", request.name, {"kind": request.spec.kind})

            await self._catalog.write(store)
            self.add(pool, aware(created))
        return await self.show(request.name)

    def _require_alone(self, target: str) -> None:
        for pool in self.all():
            if pool.spec.target == target:
                raise PoolPathTaken(
                    f"{target} already belongs to the pool {pool.name!r}",
                    value=target,
                    cure="Name another export.",
                )

    def _roots(self) -> Iterable[tuple[str, Path]]:
        specs = [(pool.name, pool.spec) for pool in self.all() if pool.name != LOCAL]
        return [(name, spec.path) for name, spec in specs if isinstance(spec, DirectoryPoolSpec)]

    async def delete(self, name: str) -> None:
        """Forget a pool that nothing is in; what lies there is not touched.

        Raises:
            PoolNotFound: there is none of that name.
            PoolInUse: disks of VMs lie in it, or it is the daemon's own.
        """
        async with self._lock:
            pool = self.of(name)
            if pool.name == LOCAL:
                raise PoolInUse(
                    "the pool of the VMs' own folders is always there",
                    value=name,
                    cure="Delete the VMs instead.",
                )

            def forget(session: Session) -> None:
                users = sorted({vm for vm, _ in self._disks(session, pool)})
                if users:
                    raise PoolInUse(
                        f"the pool {pool.name!r} holds disks of {', '.join(users[:5])}"
                        f"{' and others' if users[5:] else ''}",
                        value=pool.name,
                        cure="Move those disks to another pool, or delete the VMs.",
                        detail={"vms": users},
                    )
                session.delete(session.get_one(PoolRow, pool.name))
                self._events.append(session, "pool.deleted", pool.name)

            await self._catalog.write(forget)
            del self._pools[pool.name.lower()]
            self._created.pop(pool.name.lower(), None)
            try:
                await pool.unmake()
            except HoldfastError as error:  # storage that is gone needs not be let go of
                log.warning("a deleted pool could not be reached", pool=pool.name, error=error.message)

    async def show(self, name: str) -> PoolView:
        """Asks the storage anew. Raises PoolNotFound."""
        pool = self.of(name)
        disks = await self._catalog.read(lambda session: self._disks(session, pool))
        summary, state = await self._summary(pool, disks)
        there = state.health is not PoolHealth.VANISHED
        volumes = tuple([await _volumes(pool, vm, disk, there) for vm, disk in disks])
        return PoolView(**summary.model_dump(), spec=pool.spec, volumes=volumes)

    async def refresh(self, name: str) -> PoolView:
        """Connect a pool anew where it is not, and ask it. Raises PoolNotFound, PoolVanished."""
        await self.of(name).open()
        return await self.show(name)

    async def list(self, query: PageQuery) -> Page[PoolSummary]:
        """One page. Raises BadSort."""
        key = query.sort.lstrip("-")
        if key not in _SORTS:
            raise BadSort(f"pools cannot be sorted by {key!r}", value=key, cure=f"Use {', '.join(_SORTS)}.")
        wanted = (query.filter or "").lower()
        chosen = [
            pool
            for pool in self.all()
            if wanted in pool.name.lower() or fnmatch.fnmatchcase(pool.name.lower(), wanted)
        ]

        def disks(session: Session) -> Sequence[Sequence[tuple[str, Disk]]]:
            return [self._disks(session, pool) for pool in chosen]

        held = await self._catalog.read(disks)
        asked = [self._summary(pool, each) for pool, each in zip(chosen, held, strict=True)]
        found = [summary for summary, _ in await asyncio.gather(*asked)]
        found.sort(key=lambda each: _order(getattr(each, key)), reverse=query.sort.startswith("-"))
        items = tuple(found[query.offset : query.offset + query.limit])
        return Page(items=items, total=len(found), offset=query.offset, limit=query.limit)

    async def watch(self) -> None:
        """For ever: tell of pools that vanish, come back, fill up or have room again."""
        known = {pool.name: PoolHealth.AVAILABLE for pool in self.all()}
        while True:
            pools = self.all()
            states = await asyncio.gather(*(self._reopened(pool) for pool in pools))
            for pool, state in zip(pools, states, strict=True):
                if state.health is not known.get(pool.name, PoolHealth.AVAILABLE):
                    await self._events.emit(f"pool.{state.health}", pool.name, {"reason": state.reason})
                known[pool.name] = state.health
            await asyncio.sleep(_LOOK)

    async def _reopened(self, pool: Pool) -> PoolState:
        state = await pool.state()
        if state.health is not PoolHealth.VANISHED:
            return state
        await _opened(pool)
        return await pool.state()

    def _disks(self, session: Session, pool: Pool) -> Sequence[tuple[str, Disk]]:
        named = None if pool.name == LOCAL else pool.name
        return self._use.disks_in(session, named) if self._use else ()

    async def _summary(self, pool: Pool, disks: Sequence[tuple[str, Disk]]) -> tuple[PoolSummary, PoolState]:
        state = await pool.state()
        known = state.capacity is not None and state.free is not None
        summary = PoolSummary(
            name=pool.name,
            kind=pool.spec.kind,
            target=pool.spec.target,
            created=self._created.get(pool.name.lower()),
            health=state.health,
            reason=state.reason,
            capacity=state.capacity,
            used=(state.capacity or 0) - (state.free or 0) if known else None,
            free=state.free,
            provisioned=sum(disk.size for _, disk in disks),
        )
        return summary, state


def require_pools(session: Session, names: Iterable[str | None]) -> None:
    """In the transaction that begins to need them: every pool is there, and so remains.

    Raises:
        PoolNotFound: one was deleted meanwhile.
    """
    for name in names:
        if name is not None and session.get(PoolRow, name) is None:
            raise _not_found(name)


def ids_of(vm: str, disk: Disk) -> tuple[VolumeId, ...]:
    """The volumes of a disk, top first; a host's device has none."""
    own = own_layers(disk)
    return tuple(VolumeId(vm, name, disk.format if name == own[-1] else VolumeFormat.QCOW2) for name in own)


async def _opened(pool: Pool) -> None:
    try:
        await pool.open()
    except HoldfastError as error:
        log.warning("a pool could not be connected", pool=pool.name, error=error.message)


async def _volumes(pool: Pool, vm: str, disk: Disk, there: bool) -> PoolVolumes:
    ids = ids_of(vm, disk)
    used = sum([await pool.used(each) for each in ids]) if there else None
    return PoolVolumes(vm=vm, disk=disk.id, names=tuple(each.name for each in ids), size=disk.size, used=used)


def _order(value: object) -> tuple[bool, object]:
    return value is not None, value.lower() if isinstance(value, str) else value if value is not None else 0


def _not_found(name: str) -> PoolNotFound:
    return PoolNotFound(f"there is no pool {name[:64]!r}", value=name[:64], cure="See `holdfast pool list`.")
