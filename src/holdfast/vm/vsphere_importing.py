"""Imports of VMs from vSphere: listed, planned and begun here; `vsphere_work` carries them out.

Planning changes nothing, here or there.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from holdfast.operations.engine import Operations
from holdfast.spec.appliance import Appliance, ImportPlan
from holdfast.spec.errors import InvalidInput
from holdfast.spec.operation import Operation
from holdfast.spec.vsphere import VsphereAccess, VsphereImport, VsphereVm, parse_address
from holdfast.vm.import_admission import ImportAdmission, require_importable
from holdfast.vm.import_plan import DiskFacts, SourceFacts, plan_import
from holdfast.vm.rooms import Rooms
from holdfast.vm.vsphere_access import VsphereDoor
from holdfast.vm.vsphere_work import COLD, WARM

if TYPE_CHECKING:
    from holdfast.storage.vsphere.machine import Machine


class NoVsphereVm(InvalidInput):
    id = "no-vsphere-vm"


@dataclass(frozen=True)
class _Looked:
    appliance: Appliance
    plan: ImportPlan
    moid: str
    datacenter: str
    keys: dict[str, int]
    """VirtualDevice.key by the planned disk's id."""


class VsphereImports:
    """What the API asks for."""

    def __init__(self, rooms: Rooms, operations: Operations, door: VsphereDoor) -> None:
        self._rooms = rooms
        self._door = door
        self._admission = ImportAdmission(rooms, operations)

    async def inventory(self, access: VsphereAccess) -> list[VsphereVm]:
        """Every VM of a server. Raises as `VsphereDoor.session`."""
        async with self._door.session(access) as session:
            from holdfast.storage.vsphere.session import asked

            return await asked(session.machines)

    async def plan(self, request: VsphereImport) -> ImportPlan:
        """What an import would do. Raises VsphereVmNotFound, and as `VsphereDoor.session`."""
        return (await self._looked(request)).plan

    async def begin(self, request: VsphereImport, actor: str) -> Operation:
        """Begin an import; its result names the VM. Raises NotImportable, and as `plan`."""
        looked = await self._looked(request)
        require_importable(looked.plan, request)
        spec = await self._admission.spec(looked.plan)
        # The thumbprint is kept by now.
        path = await self._door.keep(request.source.model_copy(update={"thumbprint": None}))
        params: dict[str, Any] = {
            "full_copies": {},
            "start": request.start,
            "requested": datetime.now(UTC).isoformat(),
            "path": str(path),  # spared by a restart of the daemon
            "machine": looked.moid,
            "datacenter": looked.datacenter,
            "keys": looked.keys,
            "cut_over_at": _utc(request.cut_over_at),
            "interval": request.interval,
        }
        try:
            return await self._admission.submit(
                WARM if request.warm else COLD, looked.plan.name, spec, looked.appliance.id, params, actor
            )
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    async def _looked(self, request: VsphereImport) -> _Looked:
        address = parse_address(request.source.address)
        if address.vm is None:
            raise NoVsphereVm(
                "the address names no VM",
                value=request.source.address,
                cure="Write vsphere://HOST/VM; `holdfast vm import vsphere://HOST/ --list` shows them.",
            )
        async with self._door.session(request.source) as session:
            from holdfast.storage.vsphere.machine import Machine
            from holdfast.storage.vsphere.session import asked

            moid, datacenter = await asked(session.find, address.datacenter, address.vm)
            machine = Machine(session, moid, datacenter)
            appliance, by_source = await asked(_described, machine, request.warm)
        host = await self._admission.host(request.pools.values())
        plan = plan_import(appliance, server_facts(appliance), host, request)
        keys = {disk.id: by_source[disk.source] for disk in plan.disks}
        return _Looked(appliance, plan, moid, datacenter, keys)


def _described(machine: "Machine", warm: bool) -> tuple[Appliance, dict[str, int]]:
    """Blocks. The appliance, and the device keys by its ids of disks."""
    from holdfast.storage.vsphere.mapping import disk_id, to_appliance

    described = machine.described()
    keys = {disk_id(device.key): int(device.key) for device in described.config.hardware.device}
    return to_appliance(described, warm), keys


def server_facts(appliance: Appliance) -> SourceFacts:
    """What a server says of its disks is all that is known of them."""
    return SourceFacts(
        disks={
            disk.id: DiskFacts(disk.populated or disk.capacity or 0, "raw", disk.capacity)
            for disk in appliance.disks
        }
    )


def _utc(moment: datetime | None) -> str | None:
    """ISO 8601; a time without a zone is this host's own."""
    return moment.astimezone(UTC).isoformat() if moment else None
