"""A guest whose file systems are brought to rest by its agent for an instant, and always let go again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import VmState
from holdfast.vm.checkpoint_of_machine import GuestNotFrozen
from holdfast.vm.owner import VmOwner

log = structlog.get_logger(__name__)
T = TypeVar("T")

_FREEZE_SECONDS = 10.0
_STILL_SECONDS = 10.0
"""That the work may take, in which the guest cannot write."""
_THAW_SECONDS = 10.0
_THAWS = 3
_CURE = "Install qemu-guest-agent in the guest and let it run."


class Quiesce:
    """Of one VM. A daemon that is killed meanwhile leaves its guest frozen: the next one has to `thaw`."""

    def __init__(self, owner: VmOwner) -> None:
        self._owner = owner

    async def while_frozen(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something while the guest's file systems are whole and not written to; in the owner's task.

        Raises:
            GuestNotFrozen: `work` was not begun.
            TimeoutError: it took too long.
        """
        return await self._owner.request(lambda: self._frozen(work))

    async def _frozen(self, work: Callable[[], Awaitable[T]]) -> T:
        owner, name = self._owner, self._owner.record.name
        if owner.record.state is not VmState.RUNNING or owner.guest is None or not owner.guest.connected:
            raise GuestNotFrozen(f"the guest agent of VM {name!r} does not answer", value=name, cure=_CURE)
        agent = await owner.guest.agent()
        try:
            try:
                await agent.freeze(_FREEZE_SECONDS)
            except HoldfastError as error:
                raise GuestNotFrozen(
                    f"the guest of VM {name!r} could not bring its file systems to rest: {error.message}",
                    value=name,
                    cure=_CURE,
                ) from error
            async with asyncio.timeout(_STILL_SECONDS):
                return await work()
        finally:
            await asyncio.shield(self.thaw())

    async def thaw(self) -> bool:
        """Let the guest write again, whether or not it was frozen; False: its agent did not answer."""
        for _ in range(_THAWS):
            guest = self._owner.guest
            if guest is None:
                return self._owner.machine is None
            try:
                await (await guest.agent()).thaw(_THAW_SECONDS)
                return True
            except HoldfastError as error:
                log.warning("a guest was not thawed", vm=self._owner.record.name, error=error.message)
        return False
