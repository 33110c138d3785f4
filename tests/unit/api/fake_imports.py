"""Imports as the API and the CLI see them: nothing is brought over."""

from typing import Any

from holdfast.spec.appliance import ImportFetch, ImportFile, ImportPlan, SourceKind, VmImport
from holdfast.spec.operation import Operation
from holdfast.spec.units import GIB
from holdfast.spec.vm import GuestOs
from holdfast.spec.vsphere import VsphereAccess, VsphereImport, VsphereVm
from holdfast.storage.vsphere.refusals import VsphereCertificateUnknown


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


class FakeVsphere:
    """A server with one VM, whose certificate is not known until its thumbprint is given."""

    def __init__(self, operations: Any) -> None:
        self.operations = operations
        self.asked: list[Any] = []

    def _trust(self, access: VsphereAccess) -> None:
        if access.thumbprint is None:
            raise VsphereCertificateUnknown("its certificate is not known", value="AA:BB")

    async def inventory(self, access: VsphereAccess) -> list[VsphereVm]:
        self.asked.append(access)
        self._trust(access)
        return [
            VsphereVm(
                name="web", datacenter="DC0", id="vm-1", running=True, cpus=2, memory=GIB, firmware="efi",
                guest="Debian", storage=GIB, change_tracking=True, snapshots=False, template=False,
            )
        ]  # fmt: skip

    async def plan(self, request: VsphereImport) -> ImportPlan:
        self.asked.append(request)
        files = (ImportFile(name="x", upload="y"),)
        return await FakeImports(self.operations).plan(VmImport(name=request.name, files=files))

    async def begin(self, request: VsphereImport, actor: str) -> Operation:
        self.asked.append(request)
        self._trust(request.source)
        return self.operations.begin("vm.import-vsphere", request.name or "web", actor, lambda: None)
