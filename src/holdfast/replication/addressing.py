"""After a failover: addresses that a guest is to have on this host, set through its agent once it answers."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from holdfast.replication.attachments import SentVm
from holdfast.replication.failover_network import waiting
from holdfast.replication.guest_addresses import AddressSet, set_addresses
from holdfast.spec.errors import HoldfastError
from holdfast.vm.guest import AgentNotThere, GuestWatch
from holdfast.vm.owner import VmOwner

log = structlog.get_logger(__name__)

AGENT_SECONDS = 180.0
"""That a guest's agent has to answer for the first time."""


class Addressing:
    """`find`: the owner of a VM's id."""

    def __init__(self, find: Callable[[str], Awaitable[VmOwner]]) -> None:
        self._find = find

    async def set(self, vm: str, sent: SentVm) -> tuple[AddressSet, ...]:
        """What became of each NIC whose addresses no seed could set; a refusal is among the results."""
        owner = await self._find(vm)
        wanted = waiting(owner.record.spec, sent.failover)
        if not wanted:
            return ()
        try:
            async with asyncio.timeout(AGENT_SECONDS):
                guest = await _answering(owner)
            found = await set_addresses(guest.execute, owner.record.spec.os, wanted)
        except (TimeoutError, HoldfastError) as error:
            why = error.message if isinstance(error, HoldfastError) else "the guest's agent did not answer"
            found = tuple(
                AddressSet(
                    nic=nic.id,
                    addresses=tuple(str(each) for each in address.addresses) if address else (),
                    done=False,
                    why=why[:300],
                )
                for nic, address in wanted
            )
        for each in found:
            if not each.done:
                log.warning("addresses of a VM that failed over are not set", nic=each.nic, why=each.why)
        return found


async def _answering(owner: VmOwner) -> GuestWatch:
    """The guest once its agent answers, which takes as long as it takes to start. Raises TimeoutError."""
    while owner.guest is not None:
        with contextlib.suppress(AgentNotThere):
            await owner.guest.agent()
            return owner.guest
    raise TimeoutError
