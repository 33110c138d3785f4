"""Whether a guest sees a disk that was plugged, grown or taken out, by the word of its agent."""

from holdfast.qmp.agent import GuestAgent
from holdfast.qmp.agent_disks import GuestDisk, guest_disk_size, guest_disks
from holdfast.vm.guest_sight import asked
from holdfast.vm.owner import VmOwner


async def seen_now(owner: VmOwner) -> tuple[GuestDisk, ...] | None:
    """The disks that the guest sees; None: it cannot be asked."""
    return await asked(owner, guest_disks)


async def name_of(owner: VmOwner, disk: str, before: set[str]) -> str | None:
    """What the guest calls a disk that has just been plugged, or "": it does not see it.

    Guests that tell no serial numbers are told by what is there that was not in `before`.
    None: it cannot be asked.
    """

    def found(disks: tuple[GuestDisk, ...]) -> str:
        by_serial = [each.name for each in disks if each.is_disk(disk)]
        new = [each.name for each in disks if each.name not in before and not each.serial]
        return next(iter(by_serial or new), "")

    seen = await asked(owner, guest_disks, lambda disks: bool(found(disks)))
    return None if seen is None else found(seen)


async def has_gone(owner: VmOwner, disk: str, count: int) -> bool | None:
    """Whether the guest no longer sees a disk, of `count` that it saw; None: it cannot be asked."""

    def gone(disks: tuple[GuestDisk, ...]) -> bool:
        return not any(each.is_disk(disk) for each in disks) and len(disks) < count

    seen = await asked(owner, guest_disks, gone)
    return None if seen is None else gone(seen)


async def sees_size(owner: VmOwner, disk: str, size: int) -> bool | None:
    """Whether the guest sees a disk of that size, by its serial or as the only one of that size.

    None: it cannot be asked, or does not say.
    """

    async def sizes(agent: GuestAgent, limit: float) -> tuple[int, ...]:
        disks = await guest_disks(agent, limit)
        ours = [each for each in disks if each.is_disk(disk)] or disks
        told = [await guest_disk_size(agent, each.name, limit) for each in ours]
        return tuple(each for each in told if each is not None)

    seen = await asked(owner, sizes, lambda told: size in told)
    return size in seen if seen else None
