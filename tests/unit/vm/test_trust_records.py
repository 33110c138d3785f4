"""Trust as it is stored: changes with their event, a bounded history, gone with the VM."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.catalog.events import EventLog
from holdfast.catalog.store import Catalog
from holdfast.catalog.tables import TrustRow
from holdfast.spec.ids import new_id
from holdfast.spec.paging import PageQuery
from holdfast.spec.trust import Bank, Finding, Severity, TrustPolicy, Verdict
from holdfast.spec.vm import VmSpec
from holdfast.vm import records, trust_records
from holdfast.vm.trust_records import TrustRecords


def verdict(word: str, *failures: str) -> Verdict:
    findings = tuple(Finding(id=each, severity=Severity.FAILURE, text="x") for each in failures)
    return Verdict(
        verdict=word, findings=findings, bank=Bank.SHA256, pcrs={}, chain=(), policy="default", attested=True
    )


class Place:
    def __init__(self, folder: Path) -> None:
        self.catalog = Catalog.open(folder / "catalog")
        self.events = EventLog(self.catalog)
        self.trust = TrustRecords(self.catalog, self.events)
        self.vms = records.VmRecords(self.catalog, self.events)

    async def make(self, name: str) -> str:
        vm_id = new_id()
        spec = VmSpec(cpus=1, memory=64 << 20)
        await self.catalog.write(lambda session: records.insert(session, vm_id, name, spec, None) and None)
        return vm_id

    async def told(self, name: str) -> list[dict[str, object]]:
        return [
            each.data for each in await self.events.recent(1000, name) if each.kind == "trust.verdict-changed"
        ]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    yield made
    made.catalog.close()


async def test_only_a_change_of_verdict_is_told(place: Place) -> None:
    vm = await place.make("web")
    for each in (verdict("pass"), verdict("pass"), verdict("fail", "a", "b"), verdict("fail", "a")):
        await place.trust.add(vm, each)
    assert await place.told("web") == [
        {"before": None, "verdict": "pass", "failures": []},
        {"before": "pass", "verdict": "fail", "failures": ["a", "b"]},
    ]
    assert await place.trust.passed() == {"web": False}


async def test_the_history_is_bounded_and_the_newest_comes_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_records, "KEPT_VERDICTS", 5)
    vm, other = await place.make("web"), await place.make("db")
    await place.trust.add(other, verdict("pass"))
    for number in range(8):
        await place.trust.add(vm, verdict("pass" if number % 2 else "fail"))
    page = await place.trust.history(vm, PageQuery(limit=3, offset=1))
    assert page.total == 5 and [each.verdict for each in page.items] == ["fail", "pass", "fail"]
    assert [each.number for each in page.items] == sorted((each.number for each in page.items), reverse=True)
    assert (await place.trust.history(other, PageQuery())).total == 1


async def test_a_policy_and_an_interval_are_kept_and_go_with_the_vm(place: Place) -> None:
    vm = await place.make("web")
    assert (await place.trust.get(vm)).policy == TrustPolicy()

    def apply(row: TrustRow) -> None:
        row.policy = TrustPolicy(name="mine").model_dump(mode="json")
        row.interval_seconds = 60

    await place.trust.change(vm, apply, "trust.policy-changed")
    assert (await place.trust.get(vm)).policy.name == "mine"
    assert await place.trust.intervals() == {vm: 60}
    await place.trust.add(vm, verdict("pass"))
    await place.vms.remove(vm)
    assert await place.trust.intervals() == {} and await place.trust.passed() == {}
