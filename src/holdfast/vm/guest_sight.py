"""Whether a guest sees what was plugged into its machine, or no longer sees what was taken out."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable

from holdfast.qmp.agent import GuestAgent
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import VmState
from holdfast.vm.owner import VmOwner

_LOOK = 0.3  # seconds between two questions
_QUESTION = 5.0  # seconds for one
SECONDS = 10.0
"""That a guest is given to find a device; an emulated one takes about one."""


async def sight(
    owner: VmOwner, look: Callable[[GuestAgent, float], Awaitable[bool]], wanted: bool, limit: float = SECONDS
) -> bool | None:
    """Ask until the answer is `wanted`, for `limit` seconds; the last answer.

    `look` asks one question of the agent. None: the guest does not run, has no agent, or it does not say.
    """
    if owner.record.state is not VmState.RUNNING or owner.guest is None or not owner.guest.connected:
        return None
    seen: bool | None = None
    with contextlib.suppress(HoldfastError, TimeoutError):
        agent = await owner.guest.agent()
        async with asyncio.timeout(limit):
            for pause in itertools.repeat(_LOOK):
                seen = await look(agent, _QUESTION)
                if seen is wanted:
                    break
                await asyncio.sleep(pause)
    return seen
