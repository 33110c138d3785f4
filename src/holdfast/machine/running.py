"""QEMU processes: started, found again after the daemon's end, and steered over QMP."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.host.processes import Identity, Processes, ProcessRef
from holdfast.machine.plan import MachineInputs, arguments
from holdfast.qmp.errors import QmpLost, QmpTimedOut
from holdfast.qmp.session import QmpSession
from holdfast.spec.errors import Failed
from holdfast.spec.vm import Acceleration

_PROGRAM = "qemu-system-x86_64"


class QemuEnded(Failed):
    id = "qemu-ended"


class MemoryNotMoved(Failed):
    id = "memory-not-moved"


@dataclass(frozen=True)
class MachineEvent:
    name: str
    data: dict[str, Any]


def _data(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


class RunningMachine:
    """One QEMU with its monitor connected. Made by `Machines` inside the running loop."""

    def __init__(
        self, processes: Processes, ref: ProcessRef, qmp: QmpSession, argv: Sequence[str], runtime: Path
    ) -> None:
        self._processes, self.ref, self.qmp, self.runtime = processes, ref, qmp, runtime
        self.machine_type = argv[argv.index("-machine") + 1].split(",")[0]
        self.acceleration = Acceleration(argv[argv.index("-accel") + 1].split(",")[0])
        self.ended = asyncio.Event()
        self._listener = qmp.listen()
        self._watch = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        await self._processes.wait(self.ref)
        self.ended.set()

    async def events(self) -> AsyncIterator[MachineEvent]:
        """What QEMU reported since the connection was made; ends when QEMU ends."""
        ended = asyncio.ensure_future(self.ended.wait())
        try:
            while True:
                report = asyncio.ensure_future(self._listener.get())
                await asyncio.wait({report, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not report.done():
                    report.cancel()
                    return
                message = report.result()
                yield MachineEvent(str(message["event"]), _data(message.get("data")))
        finally:
            ended.cancel()

    async def status(self) -> str:
        return str((await self.qmp.execute("query-status"))["status"])

    async def cont(self) -> None:
        await self.qmp.execute("cont")

    async def pause(self) -> None:
        await self.qmp.execute("stop")

    async def powerdown(self) -> None:
        await self.qmp.execute("system_powerdown")

    async def quit(self, grace: float = 10.0) -> None:
        """End QEMU in order, by force after `grace` seconds; nothing where it is gone."""
        with contextlib.suppress(QmpLost, QmpTimedOut):
            await self.qmp.execute("quit")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self.ended.wait()
        await self.kill()

    async def kill(self) -> None:
        if self._processes.alive(self.ref):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.ref.pid, signal.SIGKILL)
        await self.ended.wait()
        await self.qmp.close()

    async def detach(self) -> None:
        """Let go of QEMU without touching it."""
        self._watch.cancel()
        await self.qmp.close()

    async def set_medium(self, drive: str, path: Path | None) -> None:
        if path is None:
            await self.qmp.execute("eject", id=drive, force=True)
        else:
            await self.qmp.execute(
                "blockdev-change-medium",
                id=drive,
                filename=str(path),
                format="raw",
                read_only_mode="read-only",
            )

    async def screenshot(self) -> bytes:
        """The screen as PNG."""
        path = self.runtime / "screen.png"
        try:
            await self.qmp.execute("screendump", filename=str(path), format="png")
            with await asyncio.to_thread(path.open, "rb") as file:
                return await asyncio.to_thread(file.read, 64 * 1024 * 1024)
        finally:
            path.unlink(missing_ok=True)

    async def save_memory(self, path: Path, progress: Callable[[float, str], None]) -> None:
        """Stop the VM and write its memory and devices to `path`, durably. Raises MemoryNotMoved."""
        await self.pause()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            await self._migrate("migrate", fd, progress)
            await asyncio.to_thread(os.fsync, fd)
        finally:
            os.close(fd)

    async def load_memory(self, path: Path, progress: Callable[[float, str], None]) -> None:
        """Fill a machine launched with `incoming`; it stays paused. Raises MemoryNotMoved."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._migrate("migrate-incoming", fd, progress)
        finally:
            os.close(fd)

    async def _migrate(self, command: str, fd: int, progress: Callable[[float, str], None]) -> None:
        wanted = [{"capability": "events", "state": True}]
        await self.qmp.execute("migrate-set-capabilities", capabilities=wanted)
        if command == "migrate":
            await self.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
        await self.qmp.send_fd("memory", fd)
        with self.qmp.events("MIGRATION") as listener:
            await self.qmp.execute(command, uri="fd:memory")
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await listener.get()
                found = await self.qmp.execute("query-migrate")
                if found.get("status") == "completed":
                    return
                if found.get("status") in ("failed", "cancelled"):
                    reason = found.get("error-desc", "no reason given")
                    raise MemoryNotMoved(f"QEMU could not move the memory: {reason}", value=command)
                ram = found.get("ram") or {}
                total = ram.get("total") or 1
                progress(max(0.0, 1 - ram.get("remaining", total) / total), "memory")


class Machines:
    max_cpus = 255
    """More would need an interrupt-remapping IOMMU, which the board does not have."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    async def launch(
        self,
        inputs: MachineInputs,
        identity: Identity | None = None,
        pass_fds: Sequence[int] = (),
        limit: float = 30.0,
    ) -> RunningMachine:
        """Start QEMU and connect; the VM is paused. Raises QemuEnded where it does not come up."""
        log = inputs.log_folder / "qemu.log"
        socket = inputs.runtime / "qmp"
        socket.unlink(missing_ok=True)
        argv = (_PROGRAM, *arguments(inputs))
        owner = f"vm:{inputs.vm_id}"
        ref = await self._processes.spawn(
            argv, owner=owner, role="qemu", log=log, identity=identity, pass_fds=pass_fds
        )
        try:
            async with asyncio.timeout(limit):
                while True:
                    if not self._processes.alive(ref):
                        tail = (await asyncio.to_thread(log.read_bytes))[-4096:].decode(errors="replace")
                        raise QemuEnded(
                            "QEMU ended while it started", value=inputs.name, detail={"log": tail}
                        )
                    with contextlib.suppress(QmpLost):
                        qmp = await QmpSession.connect(socket)
                        return RunningMachine(self._processes, ref, qmp, argv, inputs.runtime)
                    await asyncio.sleep(0.02)
        except BaseException:
            await asyncio.shield(self._processes.end(ref, grace=1.0))
            raise

    async def adopt(self, vm_id: str, runtime: Path) -> RunningMachine | None:
        """The VM's QEMU that an earlier daemon left; None where there is none."""
        found = self._processes.find(owner=f"vm:{vm_id}", role="qemu")
        if not found:
            return None
        qmp = await QmpSession.connect(runtime / "qmp")
        return RunningMachine(self._processes, found[0].ref, qmp, found[0].argv, runtime)
