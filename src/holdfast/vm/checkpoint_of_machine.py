"""The checkpoint of a machine that runs or is paused: the instant, with memory or with its guest frozen.

A guest that was frozen is thawed and one that was stopped goes on, whatever happens here; where the daemon
dies in between, the next one does it (`checkpoint_taking`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from holdfast.host.files import own, sync_file, write_atomic, write_out
from holdfast.host.space import require_space
from holdfast.machine.instant import Stall
from holdfast.machine.running import RunningMachine
from holdfast.operations.procedure import Job
from holdfast.qmp.agent import GuestAgent
from holdfast.spec.attachment import RbdPlace
from holdfast.spec.checkpoint import CheckpointType, CheckpointWish
from holdfast.spec.disk_requests import own_layers
from holdfast.spec.errors import Failed, HoldfastError
from holdfast.spec.units import MIB
from holdfast.spec.vm import UefiBoot, VmState
from holdfast.trust.firmware_state import FirmwareCopy, FirmwareState, copy_files
from holdfast.vm import layers
from holdfast.vm.checkpoint_files import firmware_file, memory_file
from holdfast.vm.disk_specs import require_movable_memory
from holdfast.vm.layer_merging import change_specs
from holdfast.vm.owner import VmOwner
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)

MEMORY_OVERHEAD = 64 * MIB
"""Beside the guest's memory: devices, the TPM, page tables of the file."""

_FREEZE_SECONDS = 20.0
_THAW_SECONDS = 10.0
_THAWS = 3
_NOT_FROZEN = "Install qemu-guest-agent in the guest and let it run, or make a standard checkpoint."


class GuestNotFrozen(Failed):
    id = "guest-not-frozen"


@dataclass(frozen=True)
class Taken:
    """What a checkpoint became."""

    type: CheckpointType
    stall_seconds: float | None = None
    """None: the guest did not run."""
    memory: bool = False


class MachineCheckpoint:
    """One checkpoint of one machine. Everything here runs in the owner's task."""

    def __init__(
        self,
        rooms: Rooms,
        owner: VmOwner,
        job: Job,
        machine: RunningMachine,
        folder: Path,
        wish: CheckpointWish,
    ) -> None:
        """`folder`: the checkpoint's own."""
        self._rooms = rooms
        self._owner = owner
        self._job = job
        self._machine = machine
        self._folder = folder
        self._vm = rooms.state.vm(owner.record.name)
        self._spec = owner.record.running_spec or owner.record.spec
        self._runs = owner.record.state is VmState.RUNNING
        self._wish = wish
        self._copied: FirmwareCopy | None = None

    async def take(self) -> Taken:
        """Raises GuestNotFrozen, MemoryNotMovable, MemoryNotSaved, NoSpace: the new tops are recorded."""
        tops = self._job.notes["tops"]
        freezes = self._wish is not CheckpointWish.STANDARD
        switched = {disk.volume: tops[disk.id] for disk in self._spec.disks}
        await self._open(tops)
        self._job.notes["intent"] = {"runs": self._runs, "freezes": freezes and self._runs}
        await self._job.keep()
        await self._owner.change(
            lambda row: change_specs(row, lambda spec: layers.with_tops(spec, tops), checkpoints=False)
        )

        async def at_instant() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy_firmware())
                group.create_task(self._machine.layers.switch(switched))

        kind, stall = CheckpointType.STANDARD, Stall()
        if freezes:
            frozen = await self._frozen(switched)
            kind, stall = (CheckpointType.PRODUCTION, frozen) if frozen else (kind, stall)
        if kind is CheckpointType.STANDARD:
            stall = await self._with_memory(at_instant)
        state = await self._state()
        if state is not None:
            await self._rooms.firmware.keep(state, firmware_file(self._folder))
        memory = kind is CheckpointType.STANDARD
        if memory:
            await asyncio.to_thread(sync_file, memory_file(self._folder))
        return Taken(kind, stall.seconds, memory)

    async def _open(self, tops: dict[str, str]) -> None:
        """The new layers beside the chains; what the old ones hold is written out ahead of the instant."""
        name, paths = self._owner.record.name, []
        for disk in self._spec.disks:
            above = disk.model_copy(update={"volume": tops[disk.id], "below": own_layers(disk)})
            chain = self._rooms.volumes.chain(name, above)
            await self._machine.layers.drop(chain[0].name)
            await self._machine.layers.add(chain[0])
            if not isinstance(chain[1].place, RbdPlace):
                paths.append(chain[1].path)
        await asyncio.gather(*(asyncio.to_thread(write_out, path) for path in paths))

    async def _frozen(self, tops: dict[str, str]) -> Stall | None:
        """None: the guest's file systems could not be brought to rest, and memory is the way."""
        try:
            agent = await self._agent()
            try:
                await self._freeze(agent)
                copy = self._copy_firmware if isinstance(self._spec.boot, UefiBoot) else None
                return await self._machine.instant.of_disks(tops, copy, runs=self._runs)
            finally:
                await asyncio.shield(thaw(self._owner))
        except GuestNotFrozen as error:
            if self._wish is CheckpointWish.PRODUCTION_ONLY:
                raise
            log.info("a checkpoint falls back to memory", vm=self._owner.record.name, error=error.message)
            require_movable_memory(self._owner.record)
            return None

    async def _agent(self) -> GuestAgent:
        if not self._runs or self._owner.guest is None or not self._owner.guest.connected:
            name = self._owner.record.name
            raise GuestNotFrozen(
                f"the guest agent of VM {name!r} does not answer: its file systems cannot be brought to rest",
                value=name,
                cure=_NOT_FROZEN,
            )
        return await self._owner.guest.agent()

    async def _freeze(self, agent: GuestAgent) -> None:
        try:
            await agent.freeze(_FREEZE_SECONDS)
        except HoldfastError as error:
            name = self._owner.record.name
            raise GuestNotFrozen(
                f"the guest of VM {name!r} could not bring its file systems to rest: {error.message}",
                value=name,
                cure=_NOT_FROZEN,
            ) from error

    async def _with_memory(self, at_instant: Callable[[], Awaitable[None]]) -> Stall:
        path = memory_file(self._folder)
        await asyncio.to_thread(require_space, self._folder, self._spec.memory + MEMORY_OVERHEAD)
        identity = self._rooms.identities.of(self._owner.record.number)

        def make() -> None:
            path.unlink(missing_ok=True)
            write_atomic(path, b"")
            if identity:
                own(path, identity.uid, identity.gid)

        await asyncio.to_thread(make)
        return await self._machine.instant.with_memory(path, at_instant, self._job.progress, runs=self._runs)

    async def _copy_firmware(self) -> None:
        boot = self._spec.boot
        if isinstance(boot, UefiBoot):
            self._copied = await asyncio.to_thread(copy_files, self._vm, has_tpm=boot.tpm)

    async def _state(self) -> FirmwareState | None:
        if self._copied is None:
            return None
        return await self._rooms.firmware.of_copy(self._copied, self._owner.record.id, self._vm)


async def thaw(owner: VmOwner) -> None:
    """Let a guest write again, whether or not it was frozen; one that does not answer is asked again."""
    for _ in range(_THAWS):
        if owner.guest is None:
            return
        try:
            await (await owner.guest.agent()).thaw(_THAW_SECONDS)
            return
        except HoldfastError as error:
            log.warning("a guest was not thawed", vm=owner.record.name, error=error.message)
