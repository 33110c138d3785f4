"""Failovers as the API's services give them: what was asked for is remembered."""

from datetime import UTC, datetime
from typing import Any

from holdfast.spec.operation import Operation
from holdfast.spec.seed import SeedExport, SeedFromVm, SeedImport
from holdfast.spec.turn import Failover, PlannedFailover, Turn, TurnView


class FakeTurns:
    def __init__(self, operations: Any) -> None:
        self.operations = operations
        self.asked: list[Any] = []

    async def turns(self) -> tuple[TurnView, ...]:
        return (_view("web", Turn.FENCED),)

    async def failover(self, name: str, request: Failover, actor: str) -> Operation:
        return self._begin("replica.take-over", name, actor, request)

    async def cancel(self, name: str, actor: str) -> Operation:
        return self._begin("replica.take-back", name, actor, "cancel")

    async def hand_over(self, name: str, request: PlannedFailover, actor: str) -> Operation:
        return self._begin("replica.hand-over", name, actor, request)

    async def commit(self, name: str) -> TurnView:
        self.asked.append((name, "commit"))
        return _view(name, Turn.PRIMARY)

    async def reclaim(self, name: str) -> TurnView:
        self.asked.append((name, "reclaim"))
        return _view(name, Turn.PRIMARY)

    def _begin(self, kind: str, name: str, actor: str, asked: Any) -> Operation:
        self.asked.append((name, asked))
        begun: Operation = self.operations.begin(kind, name, actor, lambda: None)
        return begun


class FakeSeeds:
    def __init__(self, operations: Any) -> None:
        self.operations = operations
        self.asked: list[Any] = []

    async def export(self, name: str, request: SeedExport, actor: str) -> Operation:
        return self._begin("replica.export-seed", name, actor, request)

    async def take(self, request: SeedImport, actor: str) -> Operation:
        return self._begin("replica.import-seed", "web", actor, request)

    async def from_vm(self, request: SeedFromVm, actor: str) -> Operation:
        return self._begin("replica.seed-from-vm", request.from_vm, actor, request)

    def _begin(self, kind: str, name: str, actor: str, asked: Any) -> Operation:
        self.asked.append((name, asked))
        begun: Operation = self.operations.begin(kind, name, actor, lambda: None)
        return begun


def _view(name: str, turn: Turn) -> TurnView:
    time = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    return TurnView(vm="0" * 8, name=name, turn=turn, term=2, peer="south", since=time, error="")
