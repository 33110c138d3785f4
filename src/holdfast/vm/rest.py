"""Work on the disks of a VM that does not run, which gives way at once to whoever acts on the VM.

    while_at_rest(work)   VM off, failed or saved, no operation, nobody in line ──▶ work
    a request, or a phase of an operation                    ──▶ work is cancelled ──▶ it goes ahead

So nobody waits for the work but for its unwinding, and it never sees a disk that somebody changes.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from holdfast.spec.errors import Conflict
from holdfast.spec.vm import VmState
from holdfast.vm.records import VmRecord

T = TypeVar("T")

AT_REST = (VmState.OFF, VmState.FAILED, VmState.SAVED)


class VmNotAtRest(Conflict):
    """The VM runs, or somebody acts on it; also said to work that had to give way."""

    id = "vm-not-at-rest"


class Rest:
    """Of one VM. `look`: its stored record, where it has no machine and nobody waits to act on it."""

    def __init__(self, look: Callable[[], Awaitable[VmRecord | None]]) -> None:
        self._look = look
        self._acting = 0
        self._entering = 0
        """Counts who wanted the VM, so that a look that was overtaken is noticed."""
        self._work: set[asyncio.Task[None]] = set()
        self.under: str | None = None
        """Id of an operation that waits for such work, and so is no reason not to begin it."""

    async def while_at_rest(self, work: Callable[[VmRecord], Awaitable[T]]) -> T:
        """Do something with the VM's disks, beside others who do. `work` is cancelled where it is in the way.

        Raises:
            VmNotAtRest: it did not begin, or had to give way.
        """
        entered = self._entering
        record = await self._look()
        busy = self._acting or entered != self._entering
        if record is None or busy or record.state not in AT_REST:
            raise _not_at_rest()
        if record.operation is not None and record.operation != self.under:
            raise _not_at_rest()
        found: list[T] = []

        async def run() -> None:
            found.append(await work(record))

        task = asyncio.ensure_future(run())
        self._work.add(task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            self._work.discard(task)
        if task.cancelled():
            raise _not_at_rest()
        task.result()
        return found[0]

    async def give_way(self) -> None:
        """Return once nothing is done with the disks any more."""
        self._entering += 1
        for task in self._work:
            task.cancel()
        if self._work:
            await asyncio.wait(set(self._work))

    @contextlib.asynccontextmanager
    async def interrupted(self) -> AsyncIterator[None]:
        """While somebody acts on the VM nothing is done with its disks beside that."""
        self._acting += 1
        try:
            await self.give_way()
            yield
        finally:
            self._acting -= 1


def _not_at_rest() -> VmNotAtRest:
    return VmNotAtRest("the VM runs, or somebody acts on it", cure="Wait until it is off, and try again.")
