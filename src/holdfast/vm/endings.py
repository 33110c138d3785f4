"""Who has something to do before a machine is ended in good order, while its guest stands still for good."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from holdfast.machine.running import RunningMachine
from holdfast.spec.errors import HoldfastError

log = structlog.get_logger(__name__)

_SECONDS = 15.0
"""That all of it may take: whoever stopped the VM waits."""
BeforeEnd = Callable[[str, RunningMachine], Awaitable[None]]
"""Given the VM's id and its machine."""


class Endings:
    """Higher rooms join in; owners tell them. What they fail by is logged, and it ends all the same."""

    def __init__(self) -> None:
        self._told: list[BeforeEnd] = []

    def tell(self, told: BeforeEnd) -> None:
        self._told.append(told)

    async def come(self, vm_id: str, machine: RunningMachine) -> None:
        """The machine ends once this returns."""
        for told in self._told:
            if machine.ended.is_set():
                return
            try:
                async with asyncio.timeout(_SECONDS):
                    await told(vm_id, machine)
            except (HoldfastError, OSError, TimeoutError) as error:
                log.warning("not all was done before a machine ended", vm=vm_id, error=str(error))
            except Exception:
                log.exception("what is done before a machine ends failed", vm=vm_id)
