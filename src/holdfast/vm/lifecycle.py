"""The long verbs on a VM that exists, as procedures: start, stop, restart, save, rename.

Each phase only speaks to the VM's owner, which knows how to undo its own half-done work; so after
a crash a phase simply asks again, and finds out whether it is so already.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.errors import TimedOut
from holdfast.spec.vm import VmState
from holdfast.vm.owner import VmOwner
from holdfast.vm.rooms import Rooms

Find = Callable[[str], Awaitable[VmOwner]]
"""From a VM's id to its owner."""

_ASK_AGAIN = 20.0  # seconds
_TICK = 1.0  # seconds between two words about how far a stop is


class GuestDidNotStop(TimedOut):
    id = "guest-did-not-stop"


class OwnerPhase:
    """A phase that works on one VM; `params["vm"]` is its id."""

    title = ""
    weight = 1.0

    def __init__(self, find: Find) -> None:
        self._find = find

    async def _owner(self, job: Job) -> VmOwner:
        owner = await self._find(job.params["vm"])
        await owner.rest.give_way()  # a phase may act on the disks beside the owner's task
        return owner

    async def undo(self, job: Job) -> None:
        """Nothing: the owner has undone what failed."""


class RoomsPhase(OwnerPhase):
    """One that works in the rooms of a VM too."""

    def __init__(self, rooms: Rooms, find: Find) -> None:
        super().__init__(find)
        self._rooms = rooms


class StartMachine(OwnerPhase):
    title = "start the machine"

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        requested = datetime.fromisoformat(job.params["requested"])
        await owner.request(lambda: owner.start(job.id, requested))


class StopGuest(OwnerPhase):
    """Asks the guest, then waits for it, and says how long it has been."""

    title = "wait for the guest to shut down"

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        limit = float(job.params["timeout_seconds"])
        began = time.monotonic()
        if not await owner.request(lambda: owner.ask_to_stop(job.id, limit)):
            return
        asked = began
        while not await self._stopped(owner):
            waited = time.monotonic() - began
            if waited >= limit:
                raise GuestDidNotStop(
                    f"the guest of VM {owner.record.name!r} did not shut down within {limit:g} seconds",
                    value=limit,
                    cure=f"Give it longer (--timeout), or use `holdfast vm kill {owner.record.name}`.",
                    detail={"agent": owner.record.guest.agent if owner.record.guest else "unknown"},
                )
            if time.monotonic() - asked >= _ASK_AGAIN:
                asked = time.monotonic()
                await owner.request(lambda: owner.ask_again(job.id, _ASK_AGAIN))
            job.progress(waited / limit, f"asked the guest {waited:.0f} s ago; it has not powered off yet")

    @staticmethod
    async def _stopped(owner: VmOwner) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TICK):
                await owner.at_rest()
                return True
        return False

    async def undo(self, job: Job) -> None:
        owner = await self._owner(job)
        await owner.request(owner.stop_asking)


class SaveMachine(OwnerPhase):
    title = "write the memory to disk"

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        if owner.record.state is VmState.SAVED:
            return
        await owner.request(lambda: owner.save(job.id, job.progress))


class RenameFolder(OwnerPhase):
    """The folder carries the VM's name: both change, and a crash between them is mended by running again."""

    title = "rename the VM"

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        await owner.request(lambda: owner.rename(job.params["name"]))

    async def undo(self, job: Job) -> None:
        owner = await self._owner(job)
        await owner.request(lambda: owner.rename(job.params["old_name"]))


def procedures(find: Find) -> list[Procedure]:
    def named(job: Job) -> dict[str, str]:
        return {"vm": job.subject}

    return [
        Procedure("vm.start", (StartMachine(find),), named),
        Procedure("vm.stop", (StopGuest(find),), named),
        Procedure("vm.restart", (StopGuest(find), StartMachine(find)), named),
        Procedure("vm.save", (SaveMachine(find),), named),
        Procedure("vm.rename", (RenameFolder(find),), lambda job: {"vm": job.params["name"]}),
    ]
