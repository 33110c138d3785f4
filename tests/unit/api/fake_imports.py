"""Imports of the fake daemon."""

from typing import Any

from holdfast.spec.appliance import ImportFetch, ImportPlan, SourceKind, VmImport
from holdfast.spec.operation import Operation
from holdfast.spec.vm import GuestOs


class FakeImports:
    """Knows one source, which can be imported."""

    def __init__(self, operations: Any) -> None:
        self.operations = operations
        self.asked: list[Any] = []

    async def plan(self, request: VmImport) -> ImportPlan:
        self.asked.append(request)
        return ImportPlan(
            importable=True, name=request.name or "web", kind=SourceKind.OVF, cpus=1, memory=1,
            os=GuestOs.LINUX, firmware=None, secure_boot=False, tpm=False, disks=(), nics=(),
            space_needed=1, space_free=2, seconds=1,
        )  # fmt: skip

    async def begin(self, request: VmImport, actor: str) -> Operation:
        self.asked.append(request)
        return self.operations.begin("vm.import", request.name or "web", actor, lambda: None)

    async def fetch(self, request: ImportFetch, actor: str) -> Operation:
        self.asked.append(request)
        return self.operations.begin("appliance.fetch", "web.ova", actor, lambda: None)
