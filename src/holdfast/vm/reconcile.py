"""What to do with a VM when the daemon comes back and finds record and reality side by side. Pure.

The record says what was meant, the machine's status says what is. QEMU is told to stay, paused,
when its guest powers off (`-action shutdown=pause`), so a process that is gone without a record of
it has died, and one in the status `shutdown` ended as its guest wished.
"""

from dataclasses import dataclass
from enum import Enum, auto

from holdfast.spec.vm import VmState


class Found(Enum):
    """What was found of the VM's machine."""

    NOTHING = auto()
    UNREACHABLE = auto()
    """A process that does not answer its monitor."""
    HALF_STARTED = auto()
    """Built, but its guest never ran: prelaunch, inmigrate."""
    RUNNING = auto()
    PAUSED = auto()
    WRITTEN_OUT = auto()
    """Its memory was written to disk: postmigrate, finish-migrate, save-vm."""
    POWERED_OFF = auto()
    """The guest shut down; the process waits."""


_STATUS = {
    "prelaunch": Found.HALF_STARTED,
    "inmigrate": Found.HALF_STARTED,
    "restore-vm": Found.HALF_STARTED,
    "running": Found.RUNNING,
    "postmigrate": Found.WRITTEN_OUT,
    "finish-migrate": Found.WRITTEN_OUT,
    "save-vm": Found.WRITTEN_OUT,
    "shutdown": Found.POWERED_OFF,
}


def found_by_status(status: str) -> Found:
    """From QEMU's RunState (qapi/run-state.json); every other one is a kind of pause."""
    return _STATUS.get(status, Found.PAUSED)


@dataclass(frozen=True)
class Settled:
    """The outcome: the state to record, and what happens to the machine."""

    state: VmState
    keep_machine: bool = False
    resume_guest: bool = False
    failure: str = ""


_S = VmState
DIED = "QEMU ended by itself while the daemon was not running"
HOST_RESTARTED = "the host was restarted or lost its power while the VM ran"


def settle(state: VmState, found: Found, memory_saved: bool, why_gone: str = DIED) -> Settled:
    """Bring the record of a VM and what was found of it together.

    Args:
        state: the recorded state.
        found: what is there.
        memory_saved: a whole memory image lies in the VM's folder.
        why_gone: what ends a machine that is gone without a record of it.
    """
    rest = _S.SAVED if memory_saved else _S.OFF
    if state is _S.SAVED:
        return Settled(_S.SAVED) if memory_saved else Settled(_S.FAILED, failure="its saved memory is gone")
    if state is _S.STARTING:
        # The operation that was starting it begins anew; a guest that already runs is left running.
        return Settled(_S.RUNNING, keep_machine=True) if found is Found.RUNNING else Settled(rest)
    if state in (_S.OFF, _S.FAILED):
        return Settled(state)
    if state is _S.SAVING:
        return _settle_saving(found, memory_saved)
    if found is Found.POWERED_OFF or (found is Found.NOTHING and state is _S.STOPPING):
        return Settled(_S.OFF)
    if found in (Found.NOTHING, Found.HALF_STARTED):
        return Settled(_S.FAILED, failure=why_gone)
    if found is Found.UNREACHABLE:
        return Settled(_S.FAILED, failure="QEMU did not answer its monitor after the daemon came back; ended")
    if state is _S.STOPPING:
        return Settled(_S.STOPPING, keep_machine=True, resume_guest=found is not Found.RUNNING)
    if found is Found.WRITTEN_OUT and state is _S.RUNNING:
        return Settled(_S.RUNNING, keep_machine=True, resume_guest=True)
    return Settled(_S.RUNNING if found is Found.RUNNING else _S.PAUSED, keep_machine=True)


def _settle_saving(found: Found, memory_saved: bool) -> Settled:
    if memory_saved:
        return Settled(_S.SAVED)
    if found in (Found.RUNNING, Found.PAUSED, Found.WRITTEN_OUT):
        return Settled(_S.RUNNING, keep_machine=True, resume_guest=True)
    if found is Found.POWERED_OFF:
        return Settled(_S.OFF)
    return Settled(_S.FAILED, failure="QEMU ended by itself while its memory was being saved")
