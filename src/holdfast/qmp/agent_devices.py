"""What a guest sees of its devices, asked of its agent (QEMU, qga/qapi-schema.json).

All of it is the guest's word: bounded, compared, never acted on.
"""

import contextlib
from typing import Any

from holdfast.qmp.agent import AgentFailed, AgentNonsense, GuestAgent

_MEMORY = "/sys/devices/system/memory"
_LARGEST_BLOCK = 1 << 40
_MOST = 65536  # CPUs, interfaces or memory blocks that are looked at


async def station_addresses(agent: GuestAgent, limit: float) -> set[str]:
    """MAC addresses of its network interfaces, in lower case (`guest-network-get-interfaces`)."""
    answer = await agent.call("guest-network-get-interfaces", limit)
    return {str(each.get("hardware-address", "")).lower() for each in _entries(answer)}


async def online_cpus(agent: GuestAgent, limit: float) -> int:
    """How many processors it uses (`guest-get-vcpus`)."""
    return sum(each.get("online") is True for each in _entries(await agent.call("guest-get-vcpus", limit)))


async def use_cpus(agent: GuestAgent, count: int, limit: float) -> int:
    """Have it use processors that it has and does not use, until they are `count`; returns how many it uses.

    Linux finds a new processor by itself, and waits to be told to use it.
    """
    cpus = _entries(await agent.call("guest-get-vcpus", limit))
    idle = [each.get("logical-id") for each in cpus if each.get("online") is False]
    chosen = idle[: max(0, count - (len(cpus) - len(idle)))]
    if chosen:
        wanted = [{"logical-id": number, "online": True} for number in chosen]
        await agent.call("guest-set-vcpus", limit, vcpus=wanted)
    return await online_cpus(agent, limit)


async def online_memory(agent: GuestAgent, limit: float) -> int:
    """Bytes of memory that it uses, in whole blocks (`guest-get-memory-blocks`)."""
    size = await _block_size(agent, limit)
    return size * sum(each.get("online") is True for each in await _blocks(agent, limit))


async def use_memory(agent: GuestAgent, most: int, limit: float, *, movable: bool) -> int:
    """Have it use up to `most` bytes of memory that it has found and does not use; returns what it uses.

    `movable`: in a way that it can give back, where it is a Linux that lets us (Linux, Documentation/
    admin-guide/mm/memory-hotplug.rst, "ZONE_MOVABLE"), else as it likes.
    """
    size = await _block_size(agent, limit)
    idle = [each.get("phys-index") for each in await _blocks(agent, limit) if each.get("online") is False]
    for number in idle[: most // size]:
        if type(number) is not int:
            continue
        if movable:
            with contextlib.suppress(AgentFailed):
                await agent.write_file(f"{_MEMORY}/memory{number}/state", b"online_movable", limit)
                continue
        block = {"phys-index": number, "online": True}
        await agent.call("guest-set-memory-blocks", limit, mem_blks=[block])
    return await online_memory(agent, limit)


async def _blocks(agent: GuestAgent, limit: float) -> list[dict[str, Any]]:
    return _entries(await agent.call("guest-get-memory-blocks", limit))


async def _block_size(agent: GuestAgent, limit: float) -> int:
    answer = await agent.call("guest-get-memory-block-info", limit)
    size = answer.get("size") if isinstance(answer, dict) else None
    if type(size) is not int or not 0 < size <= _LARGEST_BLOCK:
        raise AgentNonsense("the guest agent's answer cannot be read", value="guest-get-memory-block-info")
    return size


def _entries(answer: Any) -> list[dict[str, Any]]:
    listed = answer[:_MOST] if isinstance(answer, list) else []
    return [each for each in listed if isinstance(each, dict)]
