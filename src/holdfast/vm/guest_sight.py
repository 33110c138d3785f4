"""What a guest is asked after something was plugged into its machine, or is to be taken out of it."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from holdfast.machine.hotplug import UNPLUG_SECONDS
from holdfast.qmp.agent import GuestAgent
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import VmState
from holdfast.vm.owner import VmOwner

T = TypeVar("T")

_LOOK = 0.3  # seconds between two questions; a guest reports nothing of its own accord
_QUESTION = 5.0  # seconds for one
_SECONDS = 10.0  # that a guest is given to find a device; an emulated one takes about one
_UNHEARING = 1.0  # seconds for a guest that is paused, which cannot answer


async def asked(
    owner: VmOwner,
    question: Callable[[GuestAgent, float], Awaitable[T]],
    enough: Callable[[T], bool] = lambda _: True,
) -> T | None:
    """The last answer, once it is `enough` or time is over.

    `question` is asked of the agent, with the seconds that it may take. None: the guest does not run,
    has no agent, or it does not say.
    """
    if owner.record.state is not VmState.RUNNING or owner.guest is None or not owner.guest.connected:
        return None
    answer: T | None = None
    with contextlib.suppress(HoldfastError, TimeoutError):
        agent = await owner.guest.agent()
        async with asyncio.timeout(_SECONDS):
            for pause in itertools.repeat(_LOOK):
                answer = await question(agent, _QUESTION)
                if enough(answer):
                    break
                await asyncio.sleep(pause)
    return answer


def patience(owner: VmOwner, seconds: float = UNPLUG_SECONDS) -> float:
    """How long it is worth to wait for a guest to let go of a device, of `seconds` at the most."""
    return _UNHEARING if owner.record.state is VmState.PAUSED else seconds
