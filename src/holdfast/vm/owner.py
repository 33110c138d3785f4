"""One owner task per VM: the only place that acts on it. Everybody else enqueues requests.

    registry, operations ──request──▶ ┌────────────┐ ──▶ machine (QEMU), vTPM, ports
    QEMU's events ───────────report─▶ │ owner task │ ──▶ record + event, one transaction
    QEMU's end ──────────────report─▶ └────────────┘

Requests run one after another in the order of arrival. `kill` alone does not wait in line: it ends
the process, and what is under way then fails and is undone by its own code.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog
from sqlalchemy.orm import object_session

from holdfast.catalog.clock import now
from holdfast.catalog.tables import VmRow
from holdfast.host.log_tail import tail
from holdfast.machine.layout import as_started
from holdfast.machine.running import MachineEvent, RunningMachine
from holdfast.spec.errors import Failed, HoldfastError
from holdfast.spec.vm import VmSpec, VmState
from holdfast.spec.vm_view import FailureView, GuestView
from holdfast.vm.admission import AlreadySo, Refused, Verb, admit
from holdfast.vm.device_settling import settle_devices
from holdfast.vm.disk_settling import forget_unnamed, in_pools, settle_disks, specs_of
from holdfast.vm.guest import GuestWatch
from holdfast.vm.memory_image import MemoryImage
from holdfast.vm.records import VmRecord, own_specs, require_lone_identity
from holdfast.vm.rest import Rest
from holdfast.vm.rooms import Rooms
from holdfast.vm.stall import Stall, StallWatch
from holdfast.vm.start import bring_up, settle_restore, take_down

log = structlog.get_logger(__name__)
T = TypeVar("T")

_LOG_LINES = 40
_AGENTS_PART = 0.3  # of the time that a guest has to stop


class VmDied(Failed):
    id = "vm-died"


class VmOwner:
    """Owner of one VM. `record` is what was stored last; only this task changes state."""

    def __init__(self, rooms: Rooms, record: VmRecord, machine: RunningMachine | None = None) -> None:
        self._rooms = rooms
        self._loop = asyncio.get_running_loop()
        self.record = record
        self.machine: RunningMachine | None = None
        self.guest: GuestWatch | None = None
        self._queue: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self.rest = Rest(self._rest_record)
        self._at_rest = asyncio.Event()
        self._powered_off = False
        self._stalls = StallWatch(rooms.pools, rooms.events, self._queue.put_nowait)
        self._watch: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._serve(), name=f"vm {record.name}")
        if machine is not None:
            self._take(machine)
        else:
            self._at_rest.set()

    @property
    def boot(self) -> tuple[object, int] | None:
        """What is another after every start and restart of the guest; None where it does not run now."""
        if self.machine is None or self.record.state is not VmState.RUNNING:
            return None
        return self.machine, self.guest.restarts if self.guest else 0

    @property
    def stall(self) -> Stall | None:
        """Why the guest stands still though nobody paused it; None where it does not."""
        return self._stalls.stall

    @property
    def specs(self) -> list[VmSpec]:
        """What holds at the next start, and what the machine that runs has."""
        return own_specs(self.record) if self.machine is not None else [self.record.spec]

    # Requests

    async def request(self, action: Callable[[], Awaitable[T]]) -> T:
        """Run `action` in the owner's task when its turn comes; returns or raises what it does.

        Where the caller is cancelled, so is the action; the caller goes on once it has unwound.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task: asyncio.Task[T] | None = None
        wanted = True

        async def run() -> None:
            nonlocal task
            if wanted:
                task = asyncio.ensure_future(action())
                await asyncio.wait({task})
            ended.set_result(None)

        self._queue.put_nowait(run)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            wanted = False
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
            raise
        assert task is not None  # noqa: S101  (it ran, since it was wanted)
        return task.result()

    def admits(self, verb: Verb, operation: str | None = None) -> bool:
        """True: go on. False: it is so already. Raises the refusal.

        `operation` is the id of the operation that asks; another one under way refuses it.
        """
        other = self.record.operation if self.record.operation != operation else None
        verdict = admit(self.record.name, self.record.state, other, verb)
        if isinstance(verdict, Refused):
            raise verdict.error
        return not isinstance(verdict, AlreadySo)

    async def _serve(self) -> None:
        while True:
            run = await self._queue.get()
            try:
                async with self.rest.interrupted():
                    await run()
            except Exception:
                log.exception("a report to the owner of a VM failed", vm=self.record.name)

    async def _rest_record(self) -> VmRecord | None:
        """The VM as it is stored, where it has no machine and nobody waits to act on it."""
        stored = await self._rooms.records.get(self.record.id)
        return stored if self.machine is None and self._queue.empty() else None

    async def close(self) -> None:
        """Let go of the VM without touching it."""
        await self.rest.give_way()
        self._stalls.forget()
        for task in (self._watch, self._task):
            if task:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self.guest:
            await self.guest.close()
        if self.machine:
            await self.machine.detach()

    async def change(
        self, apply: Callable[[VmRow], None], event: str | None = None, data: dict[str, Any] | None = None
    ) -> VmRecord:
        """Store a change and keep the record current."""
        self.record = await self._rooms.records.change(self.record.id, apply, event, data)
        return self.record

    def noticed(self, operation: str | None) -> None:
        """Which operation is under way, as it was just read from the records."""
        self.record = replace(self.record, operation=operation)

    def released(self, operation: str) -> None:
        """An operation on this VM has ended; called from the catalog's thread."""
        self._loop.call_soon_threadsafe(self._forget_operation, operation)

    def _forget_operation(self, operation: str) -> None:
        if self.record.operation == operation:
            self.record = replace(self.record, operation=None)

    # Actions; each runs in the owner's task

    async def start(self, operation: str | None, requested: datetime) -> None:
        """Off, failed or saved to running. On failure the VM is what it was before."""
        if not self.admits(Verb.START, operation):
            return
        await self._rooms.beginnings.require(self.record.id, self.record.name)
        before = self.record.state
        image = MemoryImage(self._rooms.state.vm(self.record.name))
        restore = before is VmState.SAVED

        record = self.record

        def starting(row: VmRow) -> None:
            # In the transaction that begins it: of two with one identity, one is let in.
            session = object_session(row)
            if session is not None:
                require_lone_identity(session, record)
            row.state = VmState.STARTING
            row.started = requested.replace(tzinfo=None)
            row.failure = None
            if not restore:
                row.boot_seconds = None
                row.guest = None
                row.running_spec = as_started(VmSpec.model_validate(row.spec)).model_dump(mode="json")

        await self.change(starting, "vm.starting")
        try:
            verdict = await self._rooms.acceleration.verdict()
            machine_type = await self._machine_type(restore)
            machine = await bring_up(
                self._rooms, self.record, image if restore else None, verdict, machine_type
            )
        except BaseException as error:
            text = error.message if isinstance(error, HoldfastError) else str(error)

            def failed(row: VmRow) -> None:
                row.state = before
                if not restore:
                    row.running_spec = None

            await asyncio.shield(self.change(failed, "vm.start-failed", {"error": text}))
            raise
        self._take(machine)
        try:
            if restore:
                await asyncio.to_thread(image.mark_used)
            await machine.cont()
        except BaseException:
            await asyncio.shield(self._undo_restore(machine, image, before, restore))
            raise

        def running(row: VmRow) -> None:
            row.state = VmState.RUNNING
            row.machine_type = machine_type
            row.acceleration = verdict.acceleration

        await self.change(running, "vm.resumed-from-save" if restore else "vm.started")
        if restore:
            await settle_restore(self._rooms, self.record)
            await asyncio.to_thread(image.discard)

    async def _machine_type(self, restore: bool) -> str:
        """Saved memory fits only the machine it was saved from; a fresh start takes the newest."""
        newest = (await self._rooms.machines.prepare()).machine_type
        return self.record.machine_type or newest if restore else newest

    async def _undo_restore(
        self, machine: RunningMachine, image: MemoryImage, before: VmState, restore: bool
    ) -> None:
        await self._let_go(machine)
        if restore:
            await asyncio.to_thread(image.unmark)

        def back(row: VmRow) -> None:
            row.state = before

        await self.change(back, "vm.start-failed")

    async def pause(self) -> None:
        self._stalls.forget()  # it no longer goes on by itself
        if self.admits(Verb.PAUSE):
            await self._machine().pause()
            await self._set_state(VmState.PAUSED, "vm.paused")

    async def resume(self) -> None:
        if self.admits(Verb.RESUME):
            await self._machine().cont()
            await self._set_state(VmState.RUNNING, "vm.resumed")

    async def ask_to_stop(self, operation: str | None, limit: float) -> bool:
        """Ask the guest to power off. False: there is nothing to stop.

        `limit`: seconds that it has in all; the agent gets a part of them, then the power button.
        """
        if not self.admits(Verb.STOP, operation):
            return False
        machine = self._machine()
        if self.record.state is VmState.PAUSED:
            await machine.cont()
        if self.record.state is not VmState.STOPPING:
            await self._set_state(VmState.STOPPING, "vm.stopping")
        asked = self.guest is not None and await self.guest.shut_down(limit * _AGENTS_PART)
        if not asked:
            await machine.powerdown()
        return True

    async def ask_again(self, operation: str | None, limit: float) -> None:
        """A guest that is still starting may accept the wish and forget it: ask both ways once more."""
        if await self.ask_to_stop(operation, limit) and self.machine is not None:
            await self.machine.powerdown()

    async def stop_asking(self) -> None:
        """The guest did not power off in time: it counts as running again."""
        if self.record.state is VmState.STOPPING:
            await self._set_state(VmState.RUNNING, "vm.stop-given-up")

    async def save(self, operation: str | None, progress: Callable[[float, str], None]) -> None:
        """Running or paused to saved: memory to a file, then QEMU ends. On failure the guest goes on."""
        if not self.admits(Verb.SAVE, operation):
            return
        machine = self._machine()
        was_paused = self.record.state is VmState.PAUSED
        image = MemoryImage(self._rooms.state.vm(self.record.name))
        await self._set_state(VmState.SAVING, "vm.saving")
        try:
            await asyncio.to_thread(image.begin, self._rooms.identities.of(self.record.number))
            await machine.memory.save(image.partial, progress)
            await asyncio.to_thread(image.publish)
        except BaseException:
            await asyncio.shield(self._undo_save(machine, image, was_paused))
            raise

        def saved(row: VmRow) -> None:
            row.state = VmState.SAVED
            row.addresses = []
            row.guest = None

        await self.change(saved, "vm.saved")
        await self._rooms.endings.come(self.record.id, machine)
        await self._let_go(machine)

    async def _undo_save(self, machine: RunningMachine, image: MemoryImage, was_paused: bool) -> None:
        await asyncio.to_thread(image.discard)
        if machine.ended.is_set():
            return  # the report of its end follows
        if not was_paused:
            await machine.cont()
        await self._set_state(VmState.PAUSED if was_paused else VmState.RUNNING, "vm.save-failed")

    async def rename(self, name: str) -> None:
        """Volumes in pools, folder, record, in this order; running it again completes a half-done one."""
        old, new = self._rooms.state.vm(self.record.name), self._rooms.state.vm(name)
        in_others = in_pools(await specs_of(self._rooms, self.record))
        await self._rooms.volumes.rename(self.record.name, name, in_others)
        if old != new and old.exists():
            await asyncio.to_thread(old.rename, new)

        def apply(row: VmRow) -> None:
            row.name = name

        if self.record.name != name:
            await self.change(apply, "vm.renamed", {"old_name": self.record.name})

    async def kill(self) -> None:
        """End it now, or drop the memory that was saved. Not a request: it does not wait in line."""
        if not self.admits(Verb.KILL):
            return
        if self.machine is not None:
            self._powered_off = True
            await self.machine.kill()
            await self.at_rest()
        elif self.record.state is VmState.SAVED:
            await self.request(self._drop_saved)
        else:
            # It is being started: without its processes the start fails, and undoes itself.
            await take_down(self._rooms, self.record)

    async def _drop_saved(self) -> None:
        def off(row: VmRow) -> None:
            row.state = VmState.OFF
            row.running_spec = None

        if self.record.state is VmState.SAVED:
            await self.change(off, "vm.saved-memory-dropped")
            await asyncio.to_thread(MemoryImage(self._rooms.state.vm(self.record.name)).discard)

    async def at_rest(self) -> None:
        """Return once no machine is left and that is recorded."""
        await self._at_rest.wait()

    # Reports of the machine

    def _take(self, machine: RunningMachine) -> None:
        self.machine = machine
        self._powered_off = False
        self._at_rest.clear()
        self._watch = asyncio.create_task(self._watch_machine(machine))
        self._queue.put_nowait(lambda: self._look_for_stall(machine))
        if self.record.spec.guest_agent:
            self.guest = GuestWatch(self._rooms, machine, lambda: self.record, self._guest_seen)

    async def _watch_machine(self, machine: RunningMachine) -> None:
        async for event in machine.events():
            self._queue.put_nowait(lambda event=event: self._reported(machine, event))  # type: ignore[misc]
        await machine.ended.wait()
        self._queue.put_nowait(lambda: self._ended(machine))

    async def _reported(self, machine: RunningMachine, event: MachineEvent) -> None:
        if machine is not self.machine:
            return
        state = self.record.state
        if event.name == "SHUTDOWN":
            self._powered_off = True
            await self._rooms.endings.come(self.record.id, machine)
            await machine.quit()
        elif event.name == "STOP" and state is VmState.STOPPING:
            await self._look_for_stall(machine)
        elif event.name in ("STOP", "RESUME") and state in (VmState.RUNNING, VmState.PAUSED):
            await self._look_for_pause(machine)
        elif event.name == "DEVICE_DELETED":
            self.record = await settle_devices(self._rooms, self.record, machine)
            self.record = await settle_disks(self._rooms, self.record, machine)
        else:
            await self._guest_reported(event)

    async def _look_for_pause(self, machine: RunningMachine) -> None:
        # The report may be older than what was done since: only what is now counts.
        if await self._stalled(machine):
            return
        paused = await machine.status() != "running"
        if paused is not (self.record.state is VmState.PAUSED) and not self._powered_off:
            await self._set_state(
                VmState.PAUSED if paused else VmState.RUNNING, "vm.paused" if paused else "vm.resumed"
            )

    async def _guest_reported(self, event: MachineEvent) -> None:
        data = {"id": self.record.id}
        if event.name == "RESET":
            if self.guest:
                self.guest.forget()

            def forgotten(row: VmRow) -> None:
                row.guest, row.addresses = None, []

            # Whoever reads of it finds nothing that held before.
            await self.change(forgotten, "vm.guest-restarted", data)
        elif event.name == "GUEST_PANICKED":
            await self._rooms.events.emit("vm.guest-panicked", self.record.name, data)
        elif event.name == "BLOCK_IO_ERROR":
            device = str(event.data.get("device") or event.data.get("node-name"))
            await self._rooms.events.emit("vm.disk-error", self.record.name, {**data, "device": device})
        elif event.name == "VSERPORT_CHANGE" and self.guest:
            self.guest.port_changed(event.data)

    async def _stalled(self, machine: RunningMachine) -> bool:
        """Whether the guest stands still for its storage, which is then told."""
        stall = await self._stalls.look(machine, self.record) if machine is self.machine else None
        if stall is not None and self.record.state is VmState.RUNNING:
            await self._set_state(VmState.PAUSED, stall.event, stall.data)
        return stall is not None

    async def _look_for_stall(self, machine: RunningMachine) -> None:
        await self._stalled(machine)

    async def _ended(self, machine: RunningMachine) -> None:
        if machine is not self.machine:
            return
        await self._let_go(machine)
        state = self.record.state
        if state in (VmState.SAVED, VmState.OFF, VmState.FAILED):
            return
        expected = self._powered_off or state is VmState.STOPPING
        lines = await asyncio.to_thread(tail, self._rooms.state.vm(self.record.name) / "qemu.log", _LOG_LINES)
        failure = FailureView(
            text="QEMU ended by itself", time=datetime.now(UTC), log_tail=tuple(lines)
        ).model_dump(mode="json")

        had = self.record.running_spec.disks if self.record.running_spec else ()

        def ended(row: VmRow) -> None:
            row.state = VmState.OFF if expected else VmState.FAILED
            row.running_spec = None
            row.addresses = []
            row.guest = None
            row.failure = None if expected else failure

        await self.change(ended, "vm.stopped" if expected else "vm.failed")
        await forget_unnamed(self._rooms, self.record, [*had])
        await asyncio.to_thread(MemoryImage(self._rooms.state.vm(self.record.name)).discard)
        self._at_rest.set()

    async def _let_go(self, machine: RunningMachine) -> None:
        """End what is left of the machine and everything that stood beside it."""
        if self.machine is machine:
            self.machine = None
        self._stalls.forget()
        if self._watch and self._watch is not asyncio.current_task():
            self._watch.cancel()
        if self.guest:
            await self.guest.close()
            self.guest = None
        await machine.quit()
        await take_down(self._rooms, self.record)
        if self.record.state in (VmState.SAVED, VmState.OFF, VmState.FAILED, VmState.STARTING):
            self._at_rest.set()

    async def _guest_seen(self, guest: GuestView, addresses: tuple[str, ...]) -> None:
        """What the guest says of itself has been read (again)."""

        async def store() -> None:
            known = self.record.guest or GuestView(agent="waiting")
            if self.machine is None or (guest, addresses) == (known, self.record.addresses):
                return
            first = self.record.boot_seconds is None and guest.agent == "connected"

            def seen(row: VmRow) -> None:
                row.guest = guest.model_dump(mode="json")
                row.addresses = list(addresses)
                if first and row.started is not None:
                    row.boot_seconds = round((now() - row.started).total_seconds(), 2)

            await self.change(seen, "vm.guest", {"agent": guest.agent, "addresses": list(addresses)})

        self._queue.put_nowait(store)

    async def _set_state(self, state: VmState, event: str, data: dict[str, Any] | None = None) -> None:
        def apply(row: VmRow) -> None:
            row.state = state

        await self.change(apply, event, data)

    def _machine(self) -> RunningMachine:
        if self.machine is None:
            raise VmDied(f"QEMU of VM {self.record.name!r} has just ended", value=self.record.name)
        return self.machine
