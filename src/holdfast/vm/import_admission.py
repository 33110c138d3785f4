"""What every import has in common once its plan is made: the host's facts, the record, the operation."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Session

from holdfast.catalog.tables import VmRow
from holdfast.host.space import free_space, memory_figures
from holdfast.operations.engine import Operations
from holdfast.spec.appliance import ImportChoices, ImportPlan, Severity
from holdfast.spec.errors import Conflict
from holdfast.spec.ids import new_id
from holdfast.spec.operation import Operation
from holdfast.spec.pool import PoolHealth
from holdfast.spec.vm import Disk, UefiBoot, VmSpec
from holdfast.spec.vm_requests import NewNic
from holdfast.storage.pools.book import PoolNotFound, require_pools
from holdfast.trust.firmware import choose_firmware
from holdfast.vm import records
from holdfast.vm.import_plan import HostFacts
from holdfast.vm.import_room import PoolFacts
from holdfast.vm.planning import Planner
from holdfast.vm.rooms import Rooms
from holdfast.vm.usage import pools_of

_TRIES = 2


class NotImportable(Conflict):
    """The value is the ids of what stands in the way."""

    id = "not-importable"


class EulaNotAccepted(Conflict):
    id = "eula-not-accepted"


class VmIdTaken(Conflict):
    id = "vm-id-taken"


class ImportAdmission:
    def __init__(self, rooms: Rooms, operations: Operations) -> None:
        self._rooms = rooms
        self._operations = operations
        self._planner = Planner(rooms)

    async def host(self, pools: Iterable[str]) -> HostFacts:
        """`pools`: names of those that are to be asked."""
        everyone = await self._rooms.records.all()
        return HostFacts(
            switches=tuple(switch.name for switch in await self._rooms.switches.all()),
            max_cpus=self._rooms.machines.max_cpus,
            memory=memory_figures()[0],
            space_free=free_space(self._rooms.state.vms)[0],
            macs={nic.mac: f"VM {record.name!r}" for record in everyone for nic in record.spec.nics},
            names=frozenset(record.name.lower() for record in everyone),
            ids=frozenset(record.id for record in everyone),
            tpms={
                identity: record.name
                for record in everyone
                if (identity := records.tpm_identity(record.spec, record.id))
            },
            pools=await self._pools({name.lower() for name in pools}),
        )

    async def _pools(self, names: Iterable[str]) -> dict[str, PoolFacts]:
        found = {}
        for name in names:
            with contextlib.suppress(PoolNotFound):
                pool = self._rooms.pools.of(name)
                state = await pool.state()
                problem = state.reason if state.health is PoolHealth.VANISHED else ""
                found[name] = PoolFacts(pool.name, state.free, problem)
        return found

    async def spec(self, plan: ImportPlan) -> VmSpec:
        """The VM that a plan makes.

        Raises VmFolderExists, VolumesInTheWay, MacTaken, and what choosing a firmware raises.
        """
        await self._planner.require_free_name(plan.name)
        await asyncio.to_thread(choose_firmware, plan.secure_boot)
        disks = tuple(
            Disk(
                id=each.id,
                volume=each.id,
                pool=each.pool,
                format=self._rooms.pools.of(each.pool).format,
                size=each.size,
                bus=each.bus,
            )
            for each in plan.disks
        )
        await self._rooms.volumes.require_free(plan.name, disks)
        wanted = [NewNic(switch=nic.switch, vlan=nic.vlan, mac=nic.mac) for nic in plan.nics]
        return VmSpec(
            cpus=plan.cpus,
            memory=plan.memory,
            os=plan.os,
            boot=UefiBoot(secure_boot=plan.secure_boot, tpm=plan.tpm),
            disks=disks,
            nics=await self._planner.nics(wanted),
        )

    async def submit(
        self,
        kind: str,
        name: str,
        spec: VmSpec,
        wanted: str | None,
        params: dict[str, Any],
        actor: str,
        tpm: str | None = None,
    ) -> Operation:
        """Record VM and operation in one transaction.

        `wanted` is the source's UUID, `tpm` the identity of a TPM that comes along. Raises VmIdTaken.
        """
        for attempt in range(_TRIES):
            vm_id = await self._vm_id(wanted if attempt == 0 else None)

            def reserve(session: Session, operation: str, vm_id: str = vm_id) -> None:
                if session.get(VmRow, vm_id) is not None:
                    raise VmIdTaken(
                        f"there is a VM with the id {vm_id}", value=vm_id, cure="Import it again."
                    )
                require_pools(session, pools_of(spec))
                records.insert(session, vm_id, name, _with_tpm(spec, vm_id, tpm), operation)

            with contextlib.suppress(VmIdTaken):
                return await self._operations.submit(kind, name, {"vm": vm_id, **params}, actor, reserve)
        raise VmIdTaken(f"no id could be found for VM {name!r}", value=name, cure="Import it again.")

    async def _vm_id(self, wanted: str | None) -> str:
        """The source's own UUID where that can be; a VM's sockets are found by its first eight digits."""
        if wanted is None:
            return new_id()
        short = {record.id[:8] for record in await self._rooms.records.all()}
        return new_id() if wanted[:8] in short else wanted


def _with_tpm(spec: VmSpec, vm_id: str, identity: str | None) -> VmSpec:
    """The record tells from the beginning of whom the TPM is, so that two VMs with one never both run."""
    if identity is None or identity == vm_id:
        return spec
    boot = UefiBoot.model_validate(spec.boot).model_copy(update={"tpm_identity": identity})
    return spec.model_copy(update={"boot": boot})


def require_importable(plan: ImportPlan, request: ImportChoices) -> None:
    errors = [each for each in plan.findings if each.severity is Severity.ERROR]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise NotImportable(
            f"{plan.name!r} cannot be imported: {errors[0].text}{more}",
            value=[each.id for each in errors],
            cure="See all of it with --plan.",
            detail={"findings": [each.model_dump(mode="json") for each in errors]},
        )
    if plan.eulas and not request.accept_eulas:
        raise EulaNotAccepted(
            f"{plan.name!r} comes with {len(plan.eulas)} licence agreements that were not accepted",
            value=len(plan.eulas),
            cure="Read them with --plan, and accept them with --accept-eulas.",
        )
