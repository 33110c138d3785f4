"""Firmware state that a source brings along: looked at beforehand, put into the VM before its disks.

    container ──▶ header, told in the plan without any key
        └──▶ opened ──▶ kept, for this host alone ──▶ put

Whatever opens it stands in memory only, since operations are stored and secrets are not. What an operation
finds again after a crash is a container that the host key opens; it goes when the operation ends.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.operations.procedure import Job
from holdfast.spec.appliance import Finding, ImportPlan, Severity, VmImport
from holdfast.spec.errors import HoldfastError
from holdfast.spec.ids import new_id
from holdfast.storage.appliances.source import HeldFile, Source
from holdfast.trust.envelope import LONGEST, FirmwareStateDamaged
from holdfast.trust.firmware_state import FirmwareState, FirmwareStateUnlike, opened, read_header
from holdfast.trust.rotation import STATE_SUFFIX
from holdfast.trust.swtpm_state import StateFormat
from holdfast.trust.variables import summarize
from holdfast.vm.firmware_state import state_opener
from holdfast.vm.import_plan import StateFacts
from holdfast.vm.lifecycle import RoomsPhase
from holdfast.vm.rooms import Rooms


@dataclass(frozen=True)
class SeenState:
    """Firmware state of a source; `state` is None where nothing was given that opens it."""

    facts: StateFacts
    state: FirmwareState | None = field(default=None, repr=False)


async def look_at_state(rooms: Rooms, source: Source, request: VmImport) -> SeenState | None:
    """None where there is none, and nothing to open it; what is wrong with the container is a finding.

    Raises:
        OneProtection, BadContentKey, WrongPassphrase, LockedForAnother: it does not open by what was given.
        FirmwareStateDamaged, VariablesDamaged and others as `trust.firmware_state.opened`.
    """
    named, held = source.appliance.firmware_state, source.firmware_state
    wanted = request.passphrase is not None or request.content_key is not None
    if named is None:
        return SeenState(StateFacts("", wanted)) if wanted else None
    try:
        data = await asyncio.to_thread(_read, source, named, held)
        header, taken = read_header(data)
        if header.tpm:
            told = StateFormat(header.tpm.version, header.tpm.least)
            await rooms.firmware.require_readable(told, header.vm)
    except HoldfastError as refused:
        text = f"{refused.message}. {refused.cure}"[:1000]
        problem = Finding(id=refused.id, severity=Severity.ERROR, text=text)
        return SeenState(StateFacts(named, wanted, problem=problem))
    facts = StateFacts(
        named,
        wanted,
        request.same_tpm,
        identity=header.tpm.identity if header.tpm else None,
        slot=taken.slot,
        bound=taken.bound,
    )
    if not wanted:
        return SeenState(facts)
    opener = state_opener(request.passphrase, request.content_key)
    return SeenState(facts, await asyncio.to_thread(opened, data, opener))


def _read(source: Source, named: str, held: HeldFile | None) -> bytes:
    if held is None:
        raise FirmwareStateDamaged(
            f"the file {named[:120]!r} with the firmware state is not there",
            value=named[:120],
            cure="Give it beside the others, or leave out what opens it.",
        )
    data = held.read(LONGEST)
    digest = source.digests.get(held.name)
    if digest is not None and len(data) == held.size:
        hasher = digest.begin()
        hasher.update(data)
        digest.require(hasher.hexdigest(), held.name)
    return data


def require_fitting(state: FirmwareState, plan: ImportPlan) -> None:
    """Secure Boot needs keys in the store that comes along. Raises FirmwareStateUnlike."""
    if plan.secure_boot and not summarize(state.variables, Path("variables.fd")).secure_boot:
        raise FirmwareStateUnlike(
            "the firmware state that comes along holds no keys for Secure Boot",
            value=plan.name,
            cure="Add --no-secure-boot, or leave the firmware state behind.",
        )


async def keep_state(rooms: Rooms, state: FirmwareState) -> Path:
    """A file for the operation, which removes it."""
    path = rooms.state.scratch / f"import-{new_id()}{STATE_SUFFIX}"
    await rooms.firmware.keep(state, path)
    return path


class PutState(RoomsPhase):
    """Gives the VM that is being made the firmware state that came along; it goes with the VM's folder."""

    title = "put the firmware state"
    weight = 0.1

    async def do(self, job: Job) -> None:
        if job.params.get("state") is None:
            return
        record = (await self._owner(job)).record
        state = await self._rooms.firmware.kept(Path(job.params["state"]))
        folder, identity = self._rooms.state.vm(record.name), self._rooms.identities.of(record.number)
        await self._rooms.firmware.put(state, record.id, folder, identity)
        data = {"id": record.id, "of": state.vm_id}
        await self._rooms.events.emit("vm.firmware-state-imported", record.name, data)
