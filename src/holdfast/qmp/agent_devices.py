"""What a guest sees of its devices, asked of its agent (QEMU, qga/qapi-schema.json).

All of it is the guest's word: bounded, compared, never acted on.
"""

from typing import Any

from holdfast.qmp.agent import GuestAgent

_MOST = 4096  # CPUs, interfaces or memory blocks that are looked at


async def station_addresses(agent: GuestAgent, limit: float) -> set[str]:
    """MAC addresses of its network interfaces, in lower case (`guest-network-get-interfaces`)."""
    answer = await agent.call("guest-network-get-interfaces", limit)
    return {str(each.get("hardware-address", "")).lower() for each in _entries(answer)}


def _entries(answer: Any) -> list[dict[str, Any]]:
    listed = answer[:_MOST] if isinstance(answer, list) else []
    return [each for each in listed if isinstance(each, dict)]
