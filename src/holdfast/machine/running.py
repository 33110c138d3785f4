"""A running QEMU: started, found again, asked, and ended.

The monitor's socket is opened by us and handed to QEMU listening, so connecting needs no waiting
for a file to appear; it stays in the run-time folder, where a later daemon finds it. The process
itself is the truth about whether the machine is there; nothing about it is stored here.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.host.log_tail import tail
from holdfast.host.processes import Identity, Marked, Processes, ProcessRef
from holdfast.host.unix_sockets import listening
from holdfast.machine.block_errors import BlockErrors
from holdfast.machine.block_jobs import BlockJobs
from holdfast.machine.capabilities import Capabilities, CapabilityProbe
from holdfast.machine.cd_plug import CdPlug
from holdfast.machine.change_maps import ChangeMaps
from holdfast.machine.disk_layers import DiskLayers
from holdfast.machine.disk_move import DiskMove
from holdfast.machine.disk_plug import DiskPlug
from holdfast.machine.disk_snapshot import DiskSnapshot
from holdfast.machine.hotplug import HotPlug
from holdfast.machine.instant import Instant
from holdfast.machine.memory_stream import MemoryStream
from holdfast.machine.nic_plug import NicPlug
from holdfast.machine.plan import MachineInputs, arguments
from holdfast.machine.size_plug import SizePlug
from holdfast.machine.usb_plug import UsbPlug
from holdfast.qmp.errors import QmpLost
from holdfast.qmp.session import QmpSession
from holdfast.spec.errors import Failed, HoldfastError
from holdfast.spec.units import MIB

_ROLE = "qemu"
_GREETING_SECONDS = 300.0  # 2,048 emulated CPUs take 90 s to make; QEMU's end is noticed at once
_QUIT_SECONDS = 10.0
_LARGEST_SCREEN = 64 * MIB
_LOG_LINES = 40


class QemuEnded(Failed):
    id = "qemu-ended"


@dataclass(frozen=True)
class MachineEvent:
    """An event of QEMU's monitor (qapi/run-state.json and others)."""

    name: str
    data: dict[str, Any]


class RunningMachine:
    """One QEMU process with its monitor. Made by `Machines`; used by the VM's owner alone."""

    def __init__(
        self,
        processes: Processes,
        ref: ProcessRef,
        session: QmpSession,
        runtime: Path,
        capabilities: Capabilities,
    ) -> None:
        self._processes = processes
        self._session = session
        self._runtime = runtime
        self._capabilities = capabilities
        self._snapshot = DiskSnapshot(session)
        self.ref = ref
        self.ended = asyncio.Event()
        self._watch = asyncio.create_task(self._watch_process())

    @property
    def jobs(self) -> BlockJobs:
        """Background jobs on the disks."""
        return BlockJobs(self._session)

    @property
    def block_errors(self) -> BlockErrors:
        """Disks whose storage failed."""
        return BlockErrors(self._session)

    @property
    def hotplug(self) -> HotPlug:
        """Devices that come and go while it runs."""
        return HotPlug(self._session)

    @property
    def layers(self) -> DiskLayers:
        """The layers of its disks."""
        io_uring = self._capabilities.io_uring
        return DiskLayers(self._session, io_uring=io_uring, alone=self._snapshot.between_cycles)

    @property
    def memory(self) -> MemoryStream:
        """Its memory on the way to a file, and from one."""
        return MemoryStream(self._session, mapped_ram=self._capabilities.mapped_ram)

    @property
    def instant(self) -> Instant:
        """All of it at one instant."""
        return Instant(self._session, self.memory, self.layers, self._snapshot)

    @property
    def nics(self) -> NicPlug:
        """Network cards that come and go while it runs."""
        return NicPlug(self._session)

    @property
    def cds(self) -> CdPlug:
        """CD drives that come while it runs, and their discs."""
        return CdPlug(self._session)

    @property
    def usb(self) -> UsbPlug:
        """USB devices of the host that come and go while it runs."""
        return UsbPlug(self._session)

    @property
    def disks(self) -> DiskPlug:
        """Disks that come, go and change while it runs."""
        return DiskPlug(self._session, io_uring=self._capabilities.io_uring)

    @property
    def moves(self) -> DiskMove:
        """Disks that are moved to other layers while it runs."""
        io_uring = self._capabilities.io_uring
        return DiskMove(self._session, io_uring=io_uring, alone=self._snapshot.between_cycles)

    @property
    def change_maps(self) -> ChangeMaps:
        """Maps of what its guest has written."""
        return ChangeMaps(self._session)

    @property
    def snapshot(self) -> DiskSnapshot:
        """Its disks as they were at one instant, or at several."""
        return self._snapshot

    @property
    def size(self) -> SizePlug:
        """Processors and memory, more or less of them while it runs."""
        return SizePlug(self._session)

    @property
    def console_path(self) -> Path:
        return self._runtime / "console.sock"

    @property
    def vnc_path(self) -> Path:
        return self._runtime / "vnc.sock"

    @property
    def agent_path(self) -> Path:
        return self._runtime / "agent.sock"

    async def _watch_process(self) -> None:
        await self._processes.wait(self.ref)
        self.ended.set()

    async def events(self) -> AsyncIterator[MachineEvent]:
        """Everything QEMU reports, from the connection on until it is lost."""
        async for event in self._session.events():
            yield MachineEvent(event["event"], event.get("data", {}))

    async def status(self) -> str:
        """QEMU's RunState, such as `running` (qapi/run-state.json)."""
        return str((await self._session.execute("query-status"))["status"])

    async def cont(self) -> None:
        await self._session.execute("cont")

    async def pause(self) -> None:
        await self._session.execute("stop")

    async def powerdown(self) -> None:
        """Press the power button (ACPI); the guest does with it what it likes.

        A QEMU that is about to end, since its guest powered off already, needs it no more.
        """
        with contextlib.suppress(QmpLost):
            await self._session.execute("system_powerdown")

    async def quit(self) -> None:
        """End QEMU, in good order where it still answers; returns when the process is gone."""
        if not self.ended.is_set():
            with contextlib.suppress(HoldfastError):
                await self._session.execute("quit", limit=_QUIT_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), _QUIT_SECONDS)
        await self.kill()

    async def kill(self) -> None:
        """End the process at once."""
        await self._processes.end(self.ref, grace=0.0)
        self.ended.set()
        await self.detach()

    async def detach(self) -> None:
        """Let go of QEMU without touching it."""
        self._watch.cancel()
        await self._session.close()

    async def agent_port_open(self) -> bool:
        """Whether the guest's agent has its port open now."""
        devices = await self._session.execute("query-chardev")
        return any(device["label"] == "agent" and device["frontend-open"] for device in devices)

    async def screenshot(self) -> bytes:
        """What the screen shows, as PNG."""
        path = self._runtime / "screen.png"
        path.unlink(missing_ok=True)
        try:
            await self._session.execute("screendump", {"filename": str(path), "format": "png"})
            return await asyncio.to_thread(_read_whole, path)
        finally:
            path.unlink(missing_ok=True)


class Machines:
    """Starts QEMU processes and finds those that run."""

    def __init__(self, processes: Processes, probe: CapabilityProbe) -> None:
        self._processes = processes
        self._probe = probe
        self.max_cpus = 1
        """Of the machine type that new VMs get; known after `prepare`."""

    async def prepare(self) -> Capabilities:
        """Ask QEMU what it can do (remembered). Raises QemuMissing, QemuTooOld."""
        capabilities = await self._probe.get()
        self.max_cpus = capabilities.max_cpus
        return capabilities

    async def launch(
        self, inputs: MachineInputs, identity: Identity | None, log: Path, fds: Sequence[int] = ()
    ) -> RunningMachine:
        """Start QEMU, stopped before the guest's first instruction, with its monitor connected.

        `fds` are descriptors that the arguments name (TAP, vhost).

        Raises:
            QemuEnded: it ended by itself; the detail holds the end of its log.
        """
        capabilities = await self.prepare()
        path = inputs.runtime / "qmp.sock"
        listener = listening(path)
        try:
            argv = arguments(replace(inputs, monitor_fd=listener.fileno()), capabilities)
            ref = await self._processes.spawn(
                [capabilities.binary, *argv],
                owner=f"vm:{inputs.vm_id}",
                role=_ROLE,
                log=log,
                identity=identity,
                pass_fds=(listener.fileno(), *fds),
            )
        finally:
            listener.close()
        try:
            session = await self._connect(ref, path, log)
        except BaseException:
            await asyncio.shield(self._processes.end(ref, grace=0.0))
            raise
        return RunningMachine(self._processes, ref, session, inputs.runtime, capabilities)

    async def _connect(self, ref: ProcessRef, path: Path, log: Path) -> QmpSession:
        try:
            return await QmpSession.connect(path, _GREETING_SECONDS)
        except QmpLost as error:
            text = "\n".join(await asyncio.to_thread(tail, log, _LOG_LINES))
            said = text.strip().splitlines()[-1] if text.strip() else "it said nothing"
            raise QemuEnded(
                f"QEMU ended while it was starting: {said}",
                value=ref.pid,
                cure="See the end of its log in the detail, and `holdfast host check`.",
                detail={"log": text},
            ) from error

    def find(self) -> dict[str, Marked]:
        """Running QEMU processes by VM id, whoever started them."""
        found = self._processes.find(role=_ROLE)
        return {marked.owner.removeprefix("vm:"): marked for marked in found}

    async def adopt(self, marked: Marked, runtime: Path) -> RunningMachine:
        """Take over a process that an earlier daemon started. Raises QmpLost, QmpTimedOut."""
        capabilities = await self.prepare()
        session = await QmpSession.connect(runtime / "qmp.sock", _QUIT_SECONDS)
        return RunningMachine(self._processes, marked.ref, session, runtime, capabilities)


def _read_whole(path: Path) -> bytes:
    # The folder is the VM's user's: never follow what it may have put there.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return file.read(_LARGEST_SCREEN)
