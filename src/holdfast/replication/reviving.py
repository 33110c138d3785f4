"""Carries out the making of a VM over an opened point, and that such a VM comes to stand on its own.

    vm.revive   folder ─▶ firmware state ─▶ disks over the point ─▶ seed ─▶ start, if wanted ─▶ clean up
    vm.settle   copy what shows through from the point ─▶ record that nothing does any more

The record was made together with the operation; undoing takes the VM back whole. Who opened the point sees
to it that it is closed once no specification names it (`revival`).
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import structlog

from holdfast.host.files import own
from holdfast.machine.disk_layers import DiskLayers
from holdfast.machine.running import RunningMachine
from holdfast.operations.procedure import Job, Procedure
from holdfast.replication.failover_network import failover_seed
from holdfast.spec.attachment import Layer
from holdfast.spec.disk_requests import own_layers
from holdfast.spec.errors import HoldfastError
from holdfast.spec.failover import FailoverNetwork
from holdfast.spec.units import format_size
from holdfast.spec.vm import Disk, VmSpec
from holdfast.storage.seed_disc import write_seed_disc
from holdfast.vm import layers
from holdfast.vm.create import Forget, MakeParts, PrepareFolder, StartIfWanted
from holdfast.vm.disk_settling import specs_of
from holdfast.vm.disk_specs import with_update
from holdfast.vm.import_state import PutState
from holdfast.vm.layer_merging import change_specs
from holdfast.vm.lifecycle import Find, RoomsPhase
from holdfast.vm.owner import VmOwner
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)

REVIVE, SETTLE = "vm.revive", "vm.settle"
_END_SECONDS = 5.0  # for the end of a process to be noticed whose monitor was lost


class HoldState:
    """Undone last: drops the firmware state that was handed over."""

    title = "look at the point"
    weight = 0.1

    async def do(self, job: Job) -> None:
        """It was looked at before."""

    async def undo(self, job: Job) -> None:
        await _drop_state(job)


class DropState:
    title = "clean up"
    weight = 0.1

    async def do(self, job: Job) -> None:
        await _drop_state(job)

    async def undo(self, job: Job) -> None:
        """Nothing was made."""


async def _drop_state(job: Job) -> None:
    for path in job.params["uploads"]:
        await asyncio.to_thread(Path(path).unlink, missing_ok=True)


class StandOnPoint(MakeParts):
    """Empty volumes over the point; a variable store and vTPM come with the firmware state, or not at all."""

    title = "make disks over the point"

    def _has_firmware_state(self, job: Job) -> bool:
        return True


class MakeSourceSeed(RoomsPhase):
    """As the guest knows it from its source, so nothing runs anew but what sets addresses."""

    title = "make the cloud-init seed"
    weight = 0.2

    async def do(self, job: Job) -> None:
        record = (await self._owner(job)).record
        sent = job.params["source"]
        files = failover_seed(
            sent["id"],
            sent["name"],
            record.spec,
            FailoverNetwork.model_validate(sent["failover"]),
            sent["number"],
        )
        if files is None:
            return
        path = self._rooms.state.vm(record.name) / "seed.iso"
        await write_seed_disc(self._rooms.processes, path, files, f"operation:{job.id}")
        identity = self._rooms.identities.of(record.number)
        if identity:
            own(path, identity.uid, identity.gid)


class CopyFromPoint(RoomsPhase):
    """Of each disk into its lowest own volume, on which all others stand; begun anew it goes on."""

    title = "copy what is still the replica's"
    weight = 10.0

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        disks = _standing(await specs_of(self._rooms, owner.record))
        for number, disk in enumerate(disks):
            place = (number, len(disks))
            machine = owner.machine
            try:
                await self._copy(job, owner, disk, place)
            except HoldfastError:
                if machine is None or not await _ended(machine):
                    raise
                await owner.at_rest()  # it was killed or died: the rest is done without it
                await self._copy(job, owner, disk, place)

    async def _copy(self, job: Job, owner: VmOwner, disk: Disk, place: tuple[int, int]) -> None:
        lowest = own_layers(disk)[-1]
        log.info("copying a disk from its replica", vm=owner.record.name, disk=disk.id)
        machine = owner.machine
        if machine is not None and lowest in (await machine.layers.chains()).get(disk.id, ()):
            await self._live(job, owner, machine, disk, place)
        else:
            await self._offline(job, owner, disk, place)

    async def _live(
        self, job: Job, owner: VmOwner, machine: RunningMachine, disk: Disk, place: tuple[int, int]
    ) -> None:
        running = owner.record.running_spec or owner.record.spec
        now = next(each for each in running.disks if each.id == disk.id)
        await machine.jobs.cancel(_job_id(disk.id))  # of a daemon that ended
        chain = self._rooms.volumes.chain(owner.record.name, now)
        await self._stream(job, machine.layers, now, chain, place)
        await owner.request(lambda: self._record(owner, disk))
        for layer in chain[len(own_layers(now)) :]:
            await machine.layers.drop(layer.name)

    async def _offline(self, job: Job, owner: VmOwner, disk: Disk, place: tuple[int, int]) -> None:
        rooms, record = self._rooms, owner.record
        identity = rooms.identities.of(record.number)
        await rooms.volumes.grant(record.name, disk, identity)
        chain = rooms.volumes.chain(record.name, disk)
        async with rooms.storage.layers(
            rooms.state.runtime / f"settle-{record.id[:8]}.sock",
            identity,
            rooms.state.vm(record.name) / "qemu.log",
            f"operation:{job.id}",
        ) as disks:
            await disks.add_chain(chain)
            await self._stream(job, disks, disk, chain, place)
        await owner.request(lambda: self._record(owner, disk))

    async def _stream(
        self, job: Job, disks: DiskLayers, disk: Disk, chain: tuple[Layer, ...], place: tuple[int, int]
    ) -> None:
        number, count = place
        at = len(own_layers(disk)) - 1
        lowest, below = chain[at], chain[at + 1].name

        def told(done: int, total: int) -> None:
            part = done / total if total else 0.0
            text = f"{disk.id}: {format_size(done)} of {format_size(total)}"
            job.progress((number + part) / count, text)

        await disks.make_writable(lowest, below)
        await disks.stream(_job_id(disk.id), lowest.name, None, told)
        settle = disks.make_writable if at == 0 else disks.make_fixed
        await settle(lowest, None)

    async def _record(self, owner: VmOwner, disk: Disk) -> None:
        """Nothing below its own volumes is read any more. Runs in the owner's task."""
        await owner.change(
            lambda row: change_specs(row, with_update(disk.id, origin=None), checkpoints=True),
            "vm.disk-settled",
            {"disk": disk.id},
        )


async def _ended(machine: RunningMachine) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(machine.ended.wait(), _END_SECONDS)
    return machine.ended.is_set()


def _job_id(disk: str) -> str:
    return f"settle-{disk}"


def _standing(specs: list[VmSpec]) -> list[Disk]:
    """Of each disk that stands on a point its lowest own volume, which all its chains share."""
    found: dict[tuple[str, str], Disk] = {}
    for disk in (disk for spec in specs for disk in spec.disks if disk.origin is not None):
        lowest = own_layers(disk)[-1]
        found[disk.id, lowest] = layers.chain_to(specs, disk.id, lowest)
    return list(found.values())


def procedures(rooms: Rooms, find: Find, forget: Forget) -> list[Procedure]:
    def made(job: Job) -> dict[str, Any]:
        return {"vm": job.subject, "findings": job.params["findings"]}

    phases = (
        HoldState(),
        PrepareFolder(rooms, find, forget),
        PutState(rooms, find),
        StandOnPoint(rooms, find),
        MakeSourceSeed(rooms, find),
        StartIfWanted(find),
        DropState(),
    )
    return [
        Procedure(REVIVE, phases, made),
        Procedure(SETTLE, (CopyFromPoint(rooms, find),), lambda job: {"vm": job.subject}),
    ]
