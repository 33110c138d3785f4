"""What belongs to a cycle's instant beside disks: the VM's specification, and its firmware state.

    spec        `SentVm` as JSON
    firmware    `trust.firmware_state` as a container that the key of the receiver's certificate opens

The files of the firmware state are read before and after the instant: where they are the same, that is how
they were at it.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from holdfast.spec.errors import Conflict
from holdfast.spec.failover import FailoverNetwork
from holdfast.spec.model import Frozen
from holdfast.spec.vm import UefiBoot, VmSpec
from holdfast.trust.firmware_state import FirmwareCopy, FirmwareStates, copy_files
from holdfast.trust.protection import RecipientLock


class FirmwareChanging(Conflict):
    """Variables or the TPM were written at the instant of a cycle."""

    id = "replica-firmware-changing"


class SentVm(Frozen):
    """What is needed to make the VM over there."""

    version: int = 1
    id: str
    name: str
    spec: VmSpec
    failover: FailoverNetwork = FailoverNetwork()
    """Its network over there; see `failover_network`."""


@dataclass(frozen=True)
class Beside:
    """What there is now. Two are equal where nothing changed."""

    vm: SentVm
    firmware: FirmwareCopy | None


class Attachments:
    def __init__(self, states: FirmwareStates) -> None:
        self._states = states

    async def look(self, vm: SentVm, folder: Path) -> Beside:
        """Raises OSError."""
        boot = vm.spec.boot
        if not isinstance(boot, UefiBoot):
            return Beside(vm, None)
        return Beside(vm, await asyncio.to_thread(copy_files, folder, has_tpm=boot.tpm))

    async def require_same(self, before: Beside, folder: Path) -> None:
        """Raises FirmwareChanging, OSError."""
        if before.firmware is not None and await self.look(before.vm, folder) != before:
            raise FirmwareChanging(
                "the VM's firmware state was written at the instant of a cycle",
                cure="The next one tries again.",
            )

    async def sealed(
        self, now: Beside, held: Beside | None, folder: Path, certificate: str
    ) -> dict[str, bytes]:
        """What of it the receiver lacks, by name.

        Args:
            held: what the receiver has; None: nothing is known of that.
            certificate: the receiver's, PEM.

        Raises what `FirmwareStates.of_copy` raises.
        """
        found = {}
        if held is None or held.vm != now.vm:
            found["spec"] = now.vm.model_dump_json().encode()
        if now.firmware is not None and (held is None or held.firmware != now.firmware):
            state = await self._states.of_copy(now.firmware, now.vm.id, folder)
            lock = RecipientLock.of_pem(certificate.encode())
            found["firmware"] = await asyncio.to_thread(state.sealed, lock)
        return found
