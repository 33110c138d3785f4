"""Whether a guest sees a disk that was plugged, grown or taken out, by the word of its agent."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from holdfast.qmp.agent import GuestAgent
from holdfast.qmp.agent_disks import GuestDisk, guest_disk_size, guest_disks
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import VmState
from holdfast.vm.owner import VmOwner

T = TypeVar("T")

_LOOK = 0.3  # seconds between two questions; a guest reports nothing of its own accord
_QUESTION = 5.0  # seconds for one
_PATIENCE = 10.0  # seconds that a guest is given to find a disk; an emulated one takes about one


async def seen_now(owner: VmOwner) -> tuple[GuestDisk, ...] | None:
    """The disks that the guest sees; None: it cannot be asked."""
    return await _asked(owner, lambda agent: guest_disks(agent, _QUESTION), lambda _: True)


async def name_of(owner: VmOwner, disk: str, before: set[str]) -> str | None:
    """What the guest calls a disk that has just been plugged, or "": it does not see it.

    Guests that tell no serial numbers are told by what is there that was not in `before`.
    None: it cannot be asked.
    """

    def found(disks: tuple[GuestDisk, ...]) -> str:
        by_serial = [each.name for each in disks if each.is_disk(disk)]
        new = [each.name for each in disks if each.name not in before and not each.serial]
        return next(iter(by_serial or new), "")

    seen = await _asked(owner, lambda agent: guest_disks(agent, _QUESTION), lambda disks: bool(found(disks)))
    return None if seen is None else found(seen)


async def has_gone(owner: VmOwner, disk: str, count: int) -> bool | None:
    """Whether the guest no longer sees a disk, of `count` that it saw; None: it cannot be asked."""

    def gone(disks: tuple[GuestDisk, ...]) -> bool:
        return not any(each.is_disk(disk) for each in disks) and len(disks) < count

    seen = await _asked(owner, lambda agent: guest_disks(agent, _QUESTION), gone)
    return None if seen is None else gone(seen)


async def sees_size(owner: VmOwner, disk: str, size: int) -> bool | None:
    """Whether the guest sees a disk of that size, by its serial or as the only one of that size.

    None: it cannot be asked, or does not say.
    """

    async def sizes(agent: GuestAgent) -> tuple[int, ...]:
        disks = await guest_disks(agent, _QUESTION)
        asked = [each for each in disks if each.is_disk(disk)] or disks
        told = [await guest_disk_size(agent, each.name, _QUESTION) for each in asked]
        return tuple(each for each in told if each is not None)

    seen = await _asked(owner, sizes, lambda told: size in told)
    return size in seen if seen else None


async def _asked(
    owner: VmOwner, question: Callable[[GuestAgent], Awaitable[T]], enough: Callable[[T], bool]
) -> T | None:
    """The last answer, once it is `enough` or time is over; None: there was none."""
    if owner.record.state is not VmState.RUNNING or owner.guest is None or not owner.guest.connected:
        return None
    answer: T | None = None
    try:
        agent = await owner.guest.agent()
        async with asyncio.timeout(_PATIENCE):
            while True:
                answer = await question(agent)
                if enough(answer):
                    return answer
                await asyncio.sleep(_LOOK)
    except (HoldfastError, TimeoutError):
        return answer
