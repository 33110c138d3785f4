"""VMs that start only on an attested host: their vTPM's key opens only with what the verifier releases.

    set        key of the verifier ▶ wish stored ▶ key guarded       a crash between: guarded at next start
    lifted     key of the verifier ▶ key unguarded ▶ wish stored     a crash between: guarded at next start
    start      key of the verifier, each time ▶ swtpm

The verifier makes its part when it is first asked for; the host never stores it.
"""

from holdfast.spec.errors import Conflict, InvalidInput
from holdfast.spec.vm import UefiBoot, VmState
from holdfast.vm.records import VmRecord
from holdfast.vm.rooms import Rooms


class AttestedHostNeedsVtpm(InvalidInput):
    id = "attested-host-needs-vtpm"


class VmNotOff(Conflict):
    id = "vm-not-off"


def require_guardable(record: VmRecord) -> None:
    """Raises AttestedHostNeedsVtpm, and VmNotOff: what runs has its key already."""
    if not isinstance(record.spec.boot, UefiBoot) or not record.spec.boot.tpm:
        raise AttestedHostNeedsVtpm(
            f"VM {record.name!r} has no vTPM, whose key could be released to attested hosts only",
            value=record.name,
            cure="Make a VM with a vTPM.",
        )
    if record.state not in (VmState.OFF, VmState.FAILED):
        raise VmNotOff(
            f"VM {record.name!r} is {record.state}; this is set while it is off",
            value=str(record.state),
            cure=f"Stop it first: `holdfast vm stop {record.name}`.",
        )


async def guard_key(rooms: Rooms, record: VmRecord) -> bytes:
    """The verifier's part of the key; it makes one for a VM that is not guarded yet.

    Raises:
        NoVerifier, NoTpm, and the verifier's own refusals: this host is not attested.
    """
    guarded = await rooms.vtpm.is_guarded(rooms.state.vm(record.name))
    return await rooms.attested_host.guard_key(record.id, make=not guarded)


async def key_for_start(rooms: Rooms, record: VmRecord) -> bytes | None:
    """The verifier's part where the VM demands one; the key is guarded afterwards. Raises as `guard_key`."""
    if not record.spec.require_attested_host:
        return None
    key = await guard_key(rooms, record)
    await rooms.vtpm.guard(record.id, rooms.state.vm(record.name), key)
    return key
