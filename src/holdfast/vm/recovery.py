"""The daemon is back: find every VM again, settle what a crash left, end what belongs to nobody.

Runs once, before any request and before interrupted operations go on.
"""

import asyncio
from datetime import UTC, datetime

import structlog

from holdfast.catalog.tables import VmRow
from holdfast.host.files import remove_tree
from holdfast.host.log_tail import tail
from holdfast.host.processes import Marked
from holdfast.machine.running import RunningMachine
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import VmState
from holdfast.spec.vm_view import FailureView
from holdfast.trust.firmware_folder import settle_folder
from holdfast.vm.device_settling import settle_devices, settle_ports
from holdfast.vm.disk_settling import settle_machine
from holdfast.vm.memory_image import MemoryImage
from holdfast.vm.reconcile import DIED, Found, Settled, found_by_status, settle
from holdfast.vm.records import VmRecord
from holdfast.vm.registry import VmRegistry
from holdfast.vm.rooms import Rooms
from holdfast.vm.start import settle_restore, take_down

log = structlog.get_logger(__name__)

_HAD_MACHINE = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPING, VmState.SAVING})
_AT_REST = frozenset({VmState.OFF, VmState.FAILED, VmState.SAVED})
_NEVER_RAN = frozenset({Found.HALF_STARTED, Found.PAUSED})
_TOGETHER = 16  # VMs looked at side by side
_LOG_LINES = 40


async def recover(rooms: Rooms, registry: VmRegistry, why_gone: str = DIED) -> None:
    """Every VM that was not at rest gets its owner; afterwards records and processes agree.

    `why_gone` is what people are told of a VM whose machine is gone without a record of its end.

    VMs at rest with nothing left of them are not touched, however many there are.
    """
    left = await asyncio.to_thread(rooms.processes.find)
    running = {marked.owner: marked for marked in left if marked.role == "qemu"}
    owners = {marked.owner for marked in left}
    folders = {path.name for path in (rooms.state.runtime / "vm").iterdir()}
    gate = asyncio.Semaphore(_TOGETHER)
    kept: set[str] = set()

    async def one(record: VmRecord) -> None:
        async with gate:
            mark = f"vm:{record.id}"
            machine = await _recover_vm(rooms, registry, record, running.get(mark), why_gone)
            if machine is not None:
                kept.add(mark)

    records = await rooms.records.all()
    unsettled = [
        record
        for record in records
        if record.state not in _AT_REST or f"vm:{record.id}" in owners or record.id[:8] in folders
    ]
    await asyncio.gather(*(one(record) for record in unsettled))
    await asyncio.to_thread(_drop_rests, rooms, records)
    for marked in left:
        if marked.owner not in kept and not marked.owner.startswith("switch:"):
            log.warning("ending a process that belongs to nothing", owner=marked.owner, role=marked.role)
            await rooms.processes.end(marked.ref, grace=1.0)
    known = {record.id[:8] for record in records}
    for name in folders - known:
        await asyncio.to_thread(remove_tree, rooms.state.vm_runtime(name))


def _drop_rests(rooms: Rooms, records: list[VmRecord]) -> None:
    """Memory of VMs that were at rest and not saved means nothing; half-replaced firmware is settled."""
    for record in records:
        settle_folder(rooms.state.vm(record.name))
        if record.state in _AT_REST and record.state is not VmState.SAVED:
            MemoryImage(rooms.state.vm(record.name)).discard()


async def _recover_vm(
    rooms: Rooms, registry: VmRegistry, record: VmRecord, marked: Marked | None, why_gone: str
) -> RunningMachine | None:
    image = MemoryImage(rooms.state.vm(record.name))
    machine, found = await _look(rooms, record, marked)
    if record.state is VmState.STARTING and found in _NEVER_RAN:
        await asyncio.to_thread(image.unmark)
    settled = settle(record.state, found, image.exists(), why_gone)
    if record.state in _HAD_MACHINE or settled.keep_machine:
        # The guest ran on after a restore: what was kept for the case that it fails is of no use.
        await settle_restore(rooms, record)
    if not settled.keep_machine:
        if machine is not None:
            await machine.kill()
        machine = None
        await take_down(rooms, record)
    if settled.resume_guest and machine is not None:
        await machine.memory.cancel()  # else what writes it out would stop the guest again
        await machine.cont()
    if settled.state is not record.state or settled.failure:
        record = await _store(rooms, record, settled)
    if settled.state is not VmState.SAVED:
        await asyncio.to_thread(image.discard)
    if machine is not None:
        record = await _settle_plugged(rooms, record, machine)
        record = await settle_machine(rooms, record, machine)
    registry.add(record, machine)
    return machine


async def _settle_plugged(rooms: Rooms, record: VmRecord, machine: RunningMachine) -> VmRecord:
    try:
        await settle_ports(rooms, record)
        return await settle_devices(rooms, record, machine)
    except HoldfastError as error:
        log.warning("devices could not be looked at", vm=record.name, error=error.message)
        return record


async def _look(rooms: Rooms, record: VmRecord, marked: Marked | None) -> tuple[RunningMachine | None, Found]:
    if marked is None:
        return None, Found.NOTHING
    try:
        machine = await rooms.machines.adopt(marked, rooms.state.vm_runtime(record.id))
    except HoldfastError as error:
        gone = not rooms.processes.alive(marked.ref)
        log.warning("QEMU could not be asked", vm=record.name, error=error.message, gone=gone)
        return None, Found.NOTHING if gone else Found.UNREACHABLE
    try:
        return machine, found_by_status(await machine.status())
    except HoldfastError:
        return machine, Found.UNREACHABLE


async def _store(rooms: Rooms, record: VmRecord, settled: Settled) -> VmRecord:
    lines = tail(rooms.state.vm(record.name) / "qemu.log", _LOG_LINES) if settled.failure else []
    failure = FailureView(text=settled.failure, time=datetime.now(UTC), log_tail=tuple(lines))

    def apply(row: VmRow) -> None:
        row.state = settled.state
        if settled.state is VmState.FAILED:
            row.failure = failure.model_dump(mode="json")
        if not settled.keep_machine:
            row.addresses = []
            row.guest = None
        if settled.state in (VmState.OFF, VmState.FAILED):
            row.running_spec = None

    event = "vm.failed" if settled.state is VmState.FAILED else "vm.recovered"
    return await rooms.records.change(record.id, apply, event, {"was": record.state})
