"""A machine's memory, devices and TPM state on their way to a file, and back from one.

To a file it is QEMU's migration (qapi/migration.json). `save` stops the guest first. `stream` lets it run
while its memory is written, in passes over what it changed meanwhile, and stops it for the rest:

    passes ▶ pre-switchover: guest stopped, disks still ours ▶ rest and devices ▶ completed: still stopped

A guest that changes memory faster than the file takes it would go on for ever: from one pass to the next
it is allowed a longer stop, and at last any.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from holdfast.host.files import sync_file
from holdfast.qmp.errors import QmpLost, QmpTimedOut
from holdfast.qmp.session import Listener, QmpSession
from holdfast.spec.errors import Failed, HoldfastError
from holdfast.spec.units import GIB, format_size

Progress = Callable[[float, str], None]

_SECONDS = 3600.0
_FINALIZED_SECONDS = 30.0
_LOOK = 0.5  # seconds between two looks at how far it is
_BANDWIDTH = 1024 * GIB  # bytes a second: the file is the limit
_SHORT_STOP = 30  # milliseconds that the guest may stand still for the rest
_LONGER_STOPS = {6: 300, 12: 2_000_000}
"""By pass, milliseconds; the last is the longest that QEMU takes, and any rest is written within it."""
_OPTIONAL = ("pause-before-switchover", "mapped-ram")
"""Capabilities that outlast the migration they were set for."""


class MemoryNotSaved(Failed):
    id = "memory-not-saved"


class MemoryNotRestored(Failed):
    id = "memory-not-restored"


class MemoryStream:
    """The migration of one QEMU."""

    def __init__(self, session: QmpSession, *, mapped_ram: bool) -> None:
        self._session = session
        self._mapped_ram = mapped_ram

    async def save(self, path: Path, progress: Progress) -> None:
        """Stop the guest and write memory, devices and TPM state to `path`, durably.

        `path` must exist and be writable for QEMU's user. The guest stays stopped.

        Raises:
            MemoryNotSaved: QEMU could not write it; the guest can go on.
        """
        await self._session.execute("stop")
        await self._set_capabilities()
        try:
            async with self._session.listen("MIGRATION") as listener:
                await self._begin("migrate", path, os.O_WRONLY)
                await self._to_its_end(listener, progress, MemoryNotSaved)
        except BaseException:
            await self.cancel()
            raise
        await asyncio.to_thread(sync_file, path)

    async def stream(self, path: Path, at_instant: Callable[[], Awaitable[None]], progress: Progress) -> None:
        """Write memory, devices and TPM state to `path` while the guest runs; not durable when it returns.

        The guest is stopped for the last part, and stays so. `path` must exist and be writable for QEMU's
        user.

        Args:
            at_instant: called once, with the guest stopped at the instant that the file holds, and disks
                that still can be worked on.

        Raises:
            MemoryNotSaved: QEMU could not write it; the guest runs on, or can.
        """
        await self._set_capabilities("pause-before-switchover")
        await self._allow(_SHORT_STOP)
        try:
            async with self._session.listen("MIGRATION", "MIGRATION_PASS") as listener:
                await self._begin("migrate", path, os.O_WRONLY)
                await self._to_its_end(listener, progress, MemoryNotSaved, at_instant)
                await self._finalized()
        except BaseException:
            await self.cancel()
            raise

    async def load(self, path: Path, progress: Progress) -> None:
        """Read what was written, into a machine that was launched with `incoming`.

        Raises:
            MemoryNotRestored: QEMU could not read it.
        """
        await self._set_capabilities()
        try:
            async with self._session.listen("MIGRATION") as listener:
                await self._begin("migrate-incoming", path, os.O_RDONLY)
                await self._to_its_end(listener, progress, MemoryNotRestored)
        except QmpLost as error:
            raise MemoryNotRestored(
                "QEMU ended while it read the saved memory",
                value=str(path),
                cure="See the VM's log; `holdfast vm kill` drops the saved memory.",
            ) from error

    async def _finalized(self) -> None:
        """Until the guest may go on: QEMU says `completed` a moment before, and of that moment nothing."""
        async with asyncio.timeout(_FINALIZED_SECONDS):
            while (await self._session.execute("query-status"))["status"] == "finish-migrate":
                pass

    async def cancel(self) -> None:
        """End a migration; a guest that it had stopped goes on. Nothing happens where there is none."""
        with contextlib.suppress(HoldfastError):
            async with self._session.listen("MIGRATION") as listener:
                await self._session.execute("migrate_cancel")
                while (await self._session.execute("query-migrate")).get("status") == "cancelling":
                    with contextlib.suppress(QmpTimedOut):
                        await listener.get(_LOOK)

    async def _set_capabilities(self, *more: str) -> None:
        wanted = {"events", *more, *(("mapped-ram",) if self._mapped_ram else ())}
        # One that this QEMU does not know is not named; `mapped-ram` is the only one of that kind.
        known = ["events", *(each for each in _OPTIONAL if each != "mapped-ram" or self._mapped_ram)]
        states = [{"capability": name, "state": name in wanted} for name in known]
        await self._session.execute("migrate-set-capabilities", {"capabilities": states})

    async def _allow(self, stop: int) -> None:
        limits = {"max-bandwidth": _BANDWIDTH, "downtime-limit": stop}
        await self._session.execute("migrate-set-parameters", limits)

    async def _begin(self, command: str, path: Path, flags: int) -> None:
        if self._mapped_ram:
            await self._session.execute(command, {"uri": f"file:{path}"})
            return
        fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            await self._session.send_fd(fd, "memory")
        finally:
            os.close(fd)
        await self._session.execute(command, {"uri": "fd:memory"})

    async def _to_its_end(
        self,
        listener: Listener,
        progress: Progress,
        failure: type[Failed],
        at_instant: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(QmpTimedOut):
                event = await listener.get(_LOOK)
                if event["event"] == "MIGRATION_PASS":
                    if event["data"]["pass"] in _LONGER_STOPS:
                        await self._allow(_LONGER_STOPS[event["data"]["pass"]])
                    continue
                status = event["data"]["status"]
                if status == "completed":
                    return
                if status in ("failed", "cancelled"):
                    break
                if status == "pre-switchover" and at_instant is not None:
                    await at_instant()
                    await self._session.execute("migrate-continue", {"state": "pre-switchover"})
                if status in ("pre-switchover", "device"):
                    continue  # the guest stands still
            self._tell(await self._session.execute("query-migrate"), progress)
        info = await self._session.execute("query-migrate")
        reason = str(info.get("error-desc", "no reason given"))
        raise failure(
            f"QEMU could not carry the memory over: {reason}",
            value=reason,
            cure="See that space is left on the VM's file system, and the VM's log.",
        )

    @staticmethod
    def _tell(info: dict[str, Any], progress: Progress) -> None:
        if "ram" in info and info["ram"]["total"]:
            ram = info["ram"]
            done = ram["total"] - ram["remaining"]
            progress(done / ram["total"], f"{format_size(done)} of {format_size(ram['total'])}")
