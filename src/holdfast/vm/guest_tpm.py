"""A running guest's TPM, spoken to through its agent: nothing need be installed in the guest.

The agent cannot write to a file again once it has read from it, so the device is opened anew for each
command. /dev/tpm0 keeps what was loaded in between (/dev/tpmrm0 would not), and only one may have it
open: what an earlier caller left behind is flushed first, and another's use is waited for.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from holdfast.qmp.agent import AgentFailed, AgentLost, AgentNonsense, AgentRefused, AgentTimedOut, GuestAgent
from holdfast.spec.errors import Unsupported
from holdfast.trust.tpm.exchange import MAX_RESPONSE
from holdfast.trust.tpm.refusals import TpmNotReachable, TpmTooSlow
from holdfast.trust.tpm.tpm import Tpm

DEVICE = "/dev/tpm0"
LOG = "/sys/kernel/security/tpm0/binary_bios_measurements"
"""The TCG event log as Linux shows it (Documentation/security/tpm/tpm_event_log.rst)."""

_MAX_LOG = 1024 * 1024
_PATIENCE = 120.0  # seconds; an emulated guest's TPM takes some to make a key
_PAUSE = 0.2  # seconds between two tries while another program in the guest has the device
_CLEANING = 10.0  # seconds
_LOG_PATIENCE = 60.0  # seconds
_IN_USE = "Device or resource busy"


class NoGuestTpm(Unsupported):
    id = "no-guest-tpm"


class _AgentTransport:
    def __init__(self, agent: GuestAgent, deadline: float) -> None:
        self._agent = agent
        self._deadline = deadline

    async def transmit(self, command: bytes) -> bytes:
        tried = False
        while True:
            left = self._deadline - time.monotonic()
            try:
                return await self._agent.exchange(DEVICE, command, MAX_RESPONSE, max(0.0, left))
            except AgentTimedOut as error:
                raise TpmTooSlow(
                    f"the guest's TPM did not answer within {_PATIENCE:g} s",
                    value=DEVICE,
                    cure="See that the guest is not overloaded, and try again.",
                ) from error
            except (AgentLost, AgentNonsense) as error:
                raise TpmNotReachable(
                    "the guest's agent ended in the middle of a TPM command", cure="Try again."
                ) from error
            except AgentRefused as refused:
                if _IN_USE not in refused.message:
                    raise _not_there(refused) from refused
            if not tried:
                tried = True
                with contextlib.suppress(AgentFailed):
                    await self._agent.close_forgotten(_CLEANING)
                continue
            # Nothing reports that another program in the guest has closed the device.
            await asyncio.sleep(_PAUSE)


@contextlib.asynccontextmanager
async def open_guest_tpm(agent: GuestAgent) -> AsyncIterator[Tpm]:
    """The guest's TPM for some commands, all within two minutes.

    Raises:
        NoGuestTpm: the guest has none, or its agent may not open it.
        TpmNotReachable, TpmTooSlow: it does not answer.
    """
    tpm = Tpm(_AgentTransport(agent, time.monotonic() + _PATIENCE))
    await tpm.flush_all()
    yield tpm


async def read_event_log(agent: GuestAgent) -> bytes:
    """The guest's event log, up to 1 MiB and a byte; empty where it shows none."""
    try:
        return await agent.read_file(LOG, _MAX_LOG + 1, _LOG_PATIENCE)
    except AgentRefused:
        return b""


def _not_there(refused: AgentRefused) -> NoGuestTpm:
    return NoGuestTpm(
        f"the guest's TPM cannot be opened: {refused.message}",
        value=DEVICE,
        cure="The guest must be Linux with a TPM driver, and its agent must be let open files"
        " (not the case by default on RHEL: see BLOCK_RPCS in /etc/sysconfig/qemu-ga).",
    )
