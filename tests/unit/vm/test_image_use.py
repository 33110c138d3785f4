"""Deleting an image while a VM is made of it: one of the two is refused, in every order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy.orm import Session

from holdfast.catalog.clock import now
from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import OperationRow
from holdfast.host.folders import StateFolder
from holdfast.operations.engine import Operations
from holdfast.spec.ids import new_id
from holdfast.spec.image import ImageKind, ImageOrigin
from holdfast.spec.units import GIB
from holdfast.spec.vm import CdDrive, Disk, GuestOs, KernelBoot, UefiBoot, VmSpec
from holdfast.spec.vm_requests import VmCreate
from holdfast.storage.images import ImageInUse, ImageNotFound, ImageStore
from holdfast.vm.planning import Planner, VmPlan
from holdfast.vm.records import VmNotFound, VmRecords, by_name
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms
from holdfast.vm.usage import VmUsage


class RecordedOperations:
    """Records an operation with its admission in one transaction, as the engine does; runs none."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.before_finish: list[Any] = []

    async def submit(
        self,
        kind: str,
        subject: str,
        params: dict[str, Any],
        actor: str,
        admit: Callable[[Session, str], None],
    ) -> str:
        row = OperationRow(
            id=new_id(), kind=kind, subject=subject, state="running", actor=actor, params=params, notes={},
            created=now(),
        )  # fmt: skip

        def store(session: Session) -> None:
            admit(session, row.id)
            session.add(row)

        await self._catalog.write(store)
        return row.id


class PlannedFor:
    """A planner that has seen the image; `meanwhile` comes before the plan is recorded."""

    def __init__(self, plan: Callable[[str], VmPlan], images: ImageStore) -> None:
        self._plan = plan
        self._images = images
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def plan(self, request: VmCreate) -> VmPlan:
        plan = self._plan((await self._images.get("image")).digest)
        if self.meanwhile:
            await self.meanwhile()
        return plan


class Bench:
    def __init__(self, folder: Path) -> None:
        self.state = StateFolder(folder / "s", folder / "r")
        self.state.prepare()
        self.catalog = Catalog.open(self.state.catalog)
        self.records = VmRecords(self.catalog, EventLog(self.catalog))
        self.images = ImageStore(self.catalog, self.state, VmUsage(self.records))
        rooms = cast(Rooms, SimpleNamespace(records=self.records))
        self.registry = VmRegistry(rooms, cast(Operations, RecordedOperations(self.catalog)))

    def planned(self, plan: Callable[[str], VmPlan]) -> PlannedFor:
        planner = PlannedFor(plan, self.images)
        self.registry._planner = cast(Planner, planner)
        return planner

    async def put(self) -> str:
        file = self.state.scratch / "file"
        file.unlink(missing_ok=True)
        file.write_bytes(b"data")
        image = await self.images.publish(
            file, name="image", kind=ImageKind.DISK, origin=ImageOrigin.IMPORTED, source="x", virtual_size=4
        )
        return image.digest

    async def create(self) -> str:
        return cast(str, await self.registry.create(VmCreate(name="vm1"), "test"))

    async def has_vm(self) -> bool:
        try:
            await self.records.get("vm1")
        except VmNotFound:
            return False
        return True


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.catalog.close()


def spec(**changes: Any) -> VmSpec:
    fields = {"cpus": 1, "memory": GIB, "os": GuestOs.LINUX, "boot": UefiBoot(), "disks": (), "nics": ()}
    return VmSpec(**{**fields, **changes})


def disk(digest: str | None) -> Disk:
    return Disk(id="disk0", volume="disk0", size=GIB, image=digest)


PLANS: dict[str, Callable[[str], VmPlan]] = {
    "overlay": lambda digest: VmPlan(new_id(), spec(disks=(disk(digest),)), {}),
    "full copy": lambda digest: VmPlan(new_id(), spec(disks=(disk(None),)), {"disk0": digest}),
    "drive": lambda digest: VmPlan(new_id(), spec(cd_drives=(CdDrive(id="cd0", image=digest),)), {}),
    "kernel": lambda digest: VmPlan(new_id(), spec(boot=KernelBoot(kernel=digest)), {}),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
async def test_an_image_deleted_after_the_planning_refuses_the_vm(
    bench: Bench, plan: Callable[[str], VmPlan]
) -> None:
    digest = await bench.put()
    bench.planned(plan).meanwhile = lambda: bench.images.delete("image")
    with pytest.raises(ImageNotFound) as caught:
        await bench.create()
    assert caught.value.value == digest
    assert not await bench.has_vm()
    assert await bench.catalog.read(lambda session: session.query(OperationRow).count()) == 0


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
async def test_an_image_of_a_recorded_vm_stays(bench: Bench, plan: Callable[[str], VmPlan]) -> None:
    digest = await bench.put()
    bench.planned(plan)
    operation = await bench.create()
    with pytest.raises(ImageInUse) as caught:
        await bench.images.delete("image")
    assert caught.value.detail == {"vms": ["vm1"]}
    assert (await bench.images.path(digest)).read_bytes() == b"data"

    def end(session: Session) -> None:
        assert by_name(session, "vm1").operation == operation
        by_name(session, "vm1").operation = None

    await bench.catalog.write(end)
    if plan is PLANS["full copy"]:
        await bench.images.delete("image")
    else:
        with pytest.raises(ImageInUse):
            await bench.images.delete("image")


async def test_what_a_running_vm_began_with_stays(bench: Bench) -> None:
    digest = await bench.put()
    bench.planned(PLANS["drive"])
    await bench.create()

    def ejected(session: Session) -> None:
        row = by_name(session, "vm1")
        row.running_spec, row.operation = row.spec, None
        row.spec = spec().model_dump(mode="json")

    await bench.catalog.write(ejected)
    with pytest.raises(ImageInUse):
        await bench.images.delete(digest)


async def test_at_once_exactly_one_of_the_two_happens(bench: Bench) -> None:
    outcomes = set()
    for turn in range(16):
        await bench.put()

        async def meanwhile(turns: int = turn % 8) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        bench.planned(PLANS["overlay"]).meanwhile = meanwhile
        both = (bench.create(), bench.images.delete("image"))
        made, deleted = await asyncio.gather(*both, return_exceptions=True)
        errors = [type(each) for each in (made, deleted) if isinstance(each, Exception)]
        assert errors in ([ImageNotFound], [ImageInUse])
        there = await bench.has_vm()
        assert there == (not isinstance(made, Exception)) == isinstance(deleted, ImageInUse)
        assert bool(list(bench.state.images.iterdir())) == there
        outcomes.add(there)
        if there:
            await bench.records.remove((await bench.records.get("vm1")).id)
    assert outcomes
