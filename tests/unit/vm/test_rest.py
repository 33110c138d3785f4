"""Work on the disks of a VM at rest gives way to whoever acts on the VM."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest
from test_planning import record_of

from holdfast.spec.units import GIB
from holdfast.spec.vm import VmSpec, VmState
from holdfast.vm.records import VmRecord
from holdfast.vm.rest import Rest, VmNotAtRest

RESTING = record_of(VmSpec(cpus=1, memory=GIB))


@dataclass
class Reader:
    """Reads until somebody wants the disks."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    left: bool = False

    async def read(self, _: VmRecord) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            self.left = True


def rest_of(record: VmRecord | None) -> Rest:
    async def look() -> VmRecord | None:
        await asyncio.sleep(0)
        return record

    return Rest(look)


async def test_what_is_done_at_rest_returns_what_it_found() -> None:
    async def name(record: VmRecord) -> str:
        return record.name

    assert await rest_of(RESTING).while_at_rest(name) == "other"


@pytest.mark.parametrize(
    "record",
    [None, replace(RESTING, operation="1"), replace(RESTING, state=VmState.RUNNING)],
    ids=["somebody is in line", "an operation", "it runs"],
)
async def test_it_does_not_begin_where_somebody_acts_on_the_vm(record: VmRecord | None) -> None:
    reader = Reader()
    with pytest.raises(VmNotAtRest):
        await rest_of(record).while_at_rest(reader.read)
    assert not reader.begun.is_set()


async def test_all_who_read_have_left_before_somebody_acts() -> None:
    rest, readers = rest_of(RESTING), (Reader(), Reader())
    reading = [asyncio.create_task(rest.while_at_rest(each.read)) for each in readers]
    for each in readers:
        await each.begun.wait()
    async with rest.interrupted():
        assert all(each.left for each in readers)
        with pytest.raises(VmNotAtRest):
            await rest.while_at_rest(Reader().read)
    for done in await asyncio.gather(*reading, return_exceptions=True):
        assert isinstance(done, VmNotAtRest)


async def test_a_look_that_was_overtaken_is_no_leave_to_begin() -> None:
    rest, reader = rest_of(RESTING), Reader()
    reading = asyncio.create_task(rest.while_at_rest(reader.read))
    await asyncio.sleep(0)  # it is looking
    await rest.give_way()
    with pytest.raises(VmNotAtRest):
        await reading
    assert not reader.begun.is_set()


async def test_one_that_is_cancelled_leaves_before_it_returns() -> None:
    rest, reader = rest_of(RESTING), Reader()
    reading = asyncio.create_task(rest.while_at_rest(reader.read))
    await reader.begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert reader.left


async def test_an_operation_that_waits_for_it_is_no_hindrance() -> None:
    async def name(record: VmRecord) -> str:
        return record.name

    rest = rest_of(replace(RESTING, operation="1"))
    rest.under = "1"
    assert await rest.while_at_rest(name) == "other"
    rest.under = "2"
    with pytest.raises(VmNotAtRest):
        await rest.while_at_rest(name)
