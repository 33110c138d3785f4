"""qemu-storage-daemon: QEMU's block layer without a machine, for the disks of a VM that does not run.

Runs as the VM's own user, so that what a broken guest left in its disks is read with no other rights, and
with a monitor of its own on a socket whose name is gone once we are connected. It lives as long as the work
that it was started for; one that a killed daemon left behind is ended by its mark. One that only reads is
killed in the end, whatever it is doing: whoever wants the disks waits for nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from socket import socket as socket_of

from holdfast.host.processes import Identity, Processes, ProcessRef
from holdfast.host.unix_sockets import listening
from holdfast.machine.capabilities import CapabilityProbe
from holdfast.machine.disk_layers import DiskLayers
from holdfast.machine.disk_snapshot import READERS
from holdfast.machine.resting_disks import RestingDisks
from holdfast.qmp.errors import QmpLost
from holdfast.qmp.session import QmpSession
from holdfast.spec.errors import Failed, HoldfastError

_PROGRAM = "qemu-storage-daemon"
_ROLE = "storage"
_GREETING_SECONDS = 60.0
_QUIT_SECONDS = 30.0
_ATTEMPTS = 10


class StorageDaemonEnded(Failed):
    id = "storage-daemon-ended"


class StorageDaemons:
    """Starts one where it is needed."""

    def __init__(self, processes: Processes, probe: CapabilityProbe) -> None:
        self._processes = processes
        self._probe = probe

    @contextlib.asynccontextmanager
    async def layers(
        self, socket: Path, identity: Identity | None, log: Path, owner: str
    ) -> AsyncIterator[DiskLayers]:
        """The layers of disks that no machine has open; all are closed in good order at the end.

        Args:
            socket: short path for the monitor; it is there for a moment only.
            owner: mark of the process, such as `operation:<id>`.

        Raises:
            ProgramMissing: it is not installed.
            StorageDaemonEnded: it ended at once.
        """
        capabilities = await self._probe.get()
        async with self._session(socket, identity, log, owner, _QUIT_SECONDS) as session:
            yield DiskLayers(session, io_uring=capabilities.io_uring)
            with contextlib.suppress(HoldfastError):
                await session.execute("quit", limit=_QUIT_SECONDS)

    @contextlib.asynccontextmanager
    async def resting(
        self, socket: Path, identity: Identity | None, log: Path, owner: str, shown: Path | None = None
    ) -> AsyncIterator[RestingDisks]:
        """Whole disks that no machine has open. Arguments and errors as of `layers`.

        Args:
            shown: where they are to be shown to readers; it is killed in the end, at once. None: they are
                changed, and closed in good order.
        """
        capabilities = await self._probe.get()
        with contextlib.ExitStack() as opened:
            readers = opened.enter_context(listening(shown, waiting=READERS)) if shown else None
            grace = 0.0 if readers else _QUIT_SECONDS
            async with self._session(socket, identity, log, owner, grace, readers) as session:
                yield RestingDisks(session, io_uring=capabilities.io_uring)
                if not readers:
                    await session.execute("quit", limit=_QUIT_SECONDS)

    @contextlib.asynccontextmanager
    async def _session(
        self,
        socket: Path,
        identity: Identity | None,
        log: Path,
        owner: str,
        grace: float,
        readers: socket_of | None = None,
    ) -> AsyncIterator[QmpSession]:
        listener = listening(socket)
        fd = readers.fileno() if readers else -1
        try:
            ref = await self._processes.spawn(
                [
                    *(_PROGRAM, "--chardev", f"socket,id=monitor,fd={listener.fileno()},server=on,wait=off"),
                    *("--monitor", "chardev=monitor"),
                    *(("--nbd-server", f"addr.type=fd,addr.str={fd}") if readers else ()),
                ],
                owner=owner,
                role=_ROLE,
                log=log,
                identity=identity,
                pass_fds=(listener.fileno(), *((fd,) if readers else ())),
            )
        finally:
            listener.close()
        try:
            session = await self._connect(ref, socket, log)
            try:
                yield session
            finally:
                await session.close()
        finally:
            # SIGTERM ends it in good order too; a job that it is cut off in leaves a whole chain.
            await asyncio.shield(self._processes.end(ref, grace=grace))

    async def _connect(self, ref: ProcessRef, socket: Path, log: Path) -> QmpSession:
        try:
            for _ in range(_ATTEMPTS):
                # Met while it starts, its monitor may greet twice, which is no QMP.
                with contextlib.suppress(QmpLost):
                    return await QmpSession.connect(socket, _GREETING_SECONDS)
                if not self._processes.alive(ref):
                    break
        finally:
            socket.unlink(missing_ok=True)
        raise StorageDaemonEnded(
            f"{_PROGRAM} ended while it was starting", value=ref.pid, cure=f"See the end of {log}."
        )
