"""What one of many VMs meets in a change of certificates concerns that one alone."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.operations.procedure import Job
from holdfast.spec.vm import VmState
from holdfast.trust.key_changes import KeyChange
from holdfast.trust.key_stores import KeyStores
from holdfast.vm.key_work import procedures
from holdfast.vm.records import VmNotFound

_UPDATE = KeyChange(successors=True)


class Host:
    """VMs that run, by id; each has the name of its id. Fits what the phases ask."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vms: dict[str, Any] = {}
        self.rooms: Any = SimpleNamespace(state=self, records=self, events=self)

    def vm(self, name: str) -> Path:
        return self.root / name

    def add(self, vm_id: str) -> None:
        record = SimpleNamespace(id=vm_id, name=vm_id, state=VmState.RUNNING, operation=None)
        self.vms[vm_id] = SimpleNamespace(record=record, request=self.request)
        (self.vm(vm_id) / "firmware").mkdir(parents=True)

    async def request(self, action: Callable[[], Awaitable[None]]) -> None:
        await action()

    async def find(self, vm_id: str) -> Any:
        if vm_id not in self.vms:
            raise VmNotFound(f"there is no VM {vm_id!r}", value=vm_id)
        return self.vms[vm_id]

    async def get(self, vm_id: str) -> Any:
        return (await self.find(vm_id)).record

    async def emit(self, *_: Any) -> None:
        pass

    def job(self, *ids: str, id_: str = "job") -> Job:
        async def keep() -> None:
            pass

        params = {
            "vms": [*ids],
            "names": {each: f"name of {each}" for each in ids},
            "change": _UPDATE.to_json(),
            "left": [],
        }
        return Job(id_, "certs.update", "", "", params, {}, lambda *_: None, keep)

    def pending(self, vm_id: str) -> tuple[KeyChange, ...]:
        return KeyStores.pending(self.vm(vm_id))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_a_vm_that_is_deleted_meanwhile_stops_no_other(host: Host) -> None:
    for each in ("1", "2", "3"):
        host.add(each)
    update = procedures(host.rooms, host.find)[0]
    record, make = update.phases
    job = host.job("1", "2", "3", "4")
    del host.vms["2"]
    await record.do(job)
    del host.vms["3"]
    await make.do(job)
    assert update.result
    said = {each["vm"]: each["outcome"] for each in update.result(job)["vms"]}
    gone = {f"name of {each}": "failed" for each in ("2", "3", "4")}
    assert said == {"1": "at-next-start", **gone}
    assert host.pending("1") == (_UPDATE,)


async def test_an_undo_passes_over_what_is_gone(host: Host) -> None:
    for each in ("1", "2"):
        host.add(each)
    record, _ = procedures(host.rooms, host.find)[0].phases
    job = host.job("1", "2")
    await record.do(job)
    del host.vms["1"]
    await record.undo(job)
    assert host.pending("2") == ()


async def test_one_alone_fails_with_its_own_words(host: Host) -> None:
    record, _ = procedures(host.rooms, host.find)[0].phases
    with pytest.raises(VmNotFound):
        await record.do(host.job("1"))


async def test_an_operation_withdraws_its_own_alone(host: Host) -> None:
    host.add("1")
    record, _ = procedures(host.rooms, host.find)[0].phases
    first, second = host.job("1"), host.job("1", id_="second")
    await record.do(first)
    await record.do(second)
    await record.undo(second)
    assert host.pending("1") == (_UPDATE,)
    await record.undo(first)
    assert host.pending("1") == ()
