"""Whether a request to a VM is let in. Pure: no I/O, no clock; every rule stands in one table.

The answer is one of three: `Accepted` (do it), `AlreadySo` (nothing to do; the caller succeeds) or
`Refused` (with the typed reason). `admit` is asked twice: when a request arrives, and again by the
VM's owner when its turn comes, since the state may have changed while it waited.
"""

from dataclasses import dataclass
from enum import StrEnum

from holdfast.spec.errors import Conflict
from holdfast.spec.vm import VmState


class Verb(StrEnum):
    START = "start"
    STOP = "stop"
    KILL = "kill"
    RESTART = "restart"
    PAUSE = "pause"
    RESUME = "resume"
    SAVE = "save"
    RENAME = "rename"
    CHANGE = "change"
    DISKS = "disks"
    CLONE = "clone"
    CERTIFICATES = "certificates"
    DELETE = "delete"
    CONSOLE = "console"
    AGENT = "agent"
    EXPORT = "export"
    EXPORT_STATE = "export-state"
    IMPORT_STATE = "import-state"
    KEYS = "keys"
    CHECKPOINT = "checkpoint"
    APPLY_CHECKPOINT = "apply-checkpoint"
    MERGE = "merge"


class VmBusy(Conflict):
    id = "vm-busy"


class VmInWrongState(Conflict):
    id = "vm-in-wrong-state"


@dataclass(frozen=True)
class Accepted:
    pass


@dataclass(frozen=True)
class AlreadySo:
    pass


@dataclass(frozen=True)
class Refused:
    error: Conflict


Verdict = Accepted | AlreadySo | Refused

_S = VmState
_ALIVE = frozenset({_S.RUNNING, _S.PAUSED, _S.STOPPING})
_DEAD = frozenset({_S.OFF, _S.FAILED})

_FROM: dict[Verb, frozenset[VmState]] = {
    Verb.START: _DEAD | {_S.SAVED},
    Verb.STOP: frozenset({_S.RUNNING, _S.PAUSED, _S.STOPPING}),
    Verb.KILL: _ALIVE | {_S.STARTING, _S.SAVING, _S.SAVED},
    Verb.RESTART: frozenset({_S.RUNNING, _S.PAUSED}),
    Verb.PAUSE: frozenset({_S.RUNNING}),
    Verb.RESUME: frozenset({_S.PAUSED}),
    Verb.SAVE: frozenset({_S.RUNNING, _S.PAUSED}),
    Verb.RENAME: _DEAD | {_S.SAVED},
    Verb.CHANGE: frozenset(VmState) - {_S.MIGRATING, _S.SAVED, _S.SAVING},
    Verb.DISKS: _DEAD | {_S.RUNNING, _S.PAUSED},
    Verb.CLONE: _DEAD,
    Verb.CERTIFICATES: _DEAD,
    Verb.DELETE: _DEAD | {_S.SAVED},
    Verb.CONSOLE: _ALIVE | {_S.SAVING},
    Verb.AGENT: frozenset({_S.RUNNING, _S.STOPPING}),
    Verb.EXPORT: _DEAD,
    Verb.EXPORT_STATE: _DEAD,
    Verb.IMPORT_STATE: _DEAD,
    Verb.KEYS: frozenset(VmState) - {_S.MIGRATING},
    Verb.CHECKPOINT: _DEAD | {_S.RUNNING, _S.PAUSED, _S.SAVED},
    Verb.APPLY_CHECKPOINT: _DEAD | {_S.RUNNING, _S.PAUSED, _S.SAVED},
    Verb.MERGE: _DEAD | {_S.RUNNING, _S.PAUSED, _S.SAVED},
}

_ALREADY: dict[Verb, frozenset[VmState]] = {
    Verb.START: frozenset({_S.RUNNING}),
    Verb.STOP: _DEAD | {_S.SAVED},
    Verb.KILL: _DEAD,
    Verb.PAUSE: frozenset({_S.PAUSED}),
    Verb.RESUME: frozenset({_S.RUNNING}),
    Verb.SAVE: frozenset({_S.SAVED}),
}

_BESIDE_AN_OPERATION = frozenset({Verb.KILL, Verb.CONSOLE, Verb.AGENT})
"""What may be done while an operation is under way: `kill` is the way out of one that hangs."""

_CURES: dict[Verb, str] = {
    Verb.START: "Resume a paused VM with `holdfast vm resume`.",
    Verb.PAUSE: "Start the VM first.",
    Verb.RESUME: "Only a paused VM can be resumed; start it if it is off or saved.",
    Verb.SAVE: "Start the VM first.",
    Verb.RESTART: "Start the VM first.",
    Verb.RENAME: "Stop or save the VM first.",
    Verb.CHANGE: "Start the saved VM, or delete its saved memory with `holdfast vm kill`.",
    Verb.DISKS: "Wait until it runs or is off; drop saved memory with `holdfast vm kill`.",
    Verb.CLONE: "Stop the VM first; a running or saved VM has state that a clone would lose.",
    Verb.CERTIFICATES: "Try again.",
    Verb.DELETE: "Stop the VM first, or add --force.",
    Verb.CONSOLE: "Start the VM first.",
    Verb.AGENT: "Start the VM first.",
    Verb.EXPORT: "Stop the VM first, or name a checkpoint of it with --checkpoint.",
    Verb.EXPORT_STATE: "Stop the VM first; the memory of a running or saved VM has newer state.",
    Verb.IMPORT_STATE: "Stop the VM first; drop saved memory with `holdfast vm kill`.",
    Verb.KEYS: "Wait until the VM has arrived.",
    Verb.CHECKPOINT: "Wait until the VM runs or is off.",
    Verb.APPLY_CHECKPOINT: "Wait until the VM runs or is off.",
    Verb.MERGE: "Wait until the VM runs or is off.",
}


def admit(name: str, state: VmState, operation: str | None, verb: Verb) -> Verdict:
    """Decide one request.

    Args:
        name: the VM's name, for the words of a refusal.
        state: its stored state.
        operation: id of the operation under way, other than the one that asks; None where there is none.
        verb: what is asked.
    """
    if operation is not None and verb not in _BESIDE_AN_OPERATION:
        return Refused(
            VmBusy(
                f"VM {name!r} is busy with another operation",
                value=operation,
                cure=f"Wait for it, or end it with `holdfast operation cancel {operation}`.",
            )
        )
    if state in _FROM[verb]:
        return Accepted()
    if state in _ALREADY.get(verb, frozenset()):
        return AlreadySo()
    return Refused(
        VmInWrongState(
            f"VM {name!r} is {state}; it cannot {_WORDS.get(verb, str(verb))} now",
            value=str(state),
            cure=_CURES.get(verb, ""),
        )
    )


_WORDS: dict[Verb, str] = {
    Verb.RENAME: "be renamed",
    Verb.CHANGE: "be changed",
    Verb.DISKS: "have its disks changed",
    Verb.CLONE: "be cloned",
    Verb.CERTIFICATES: "be given other certificates",
    Verb.DELETE: "be deleted",
    Verb.CONSOLE: "be reached by console or screen",
    Verb.AGENT: "be reached by its agent",
    Verb.EXPORT: "be exported",
    Verb.EXPORT_STATE: "have its firmware state exported",
    Verb.IMPORT_STATE: "be given another firmware state",
    Verb.KEYS: "have its keys changed",
    Verb.CHECKPOINT: "have a checkpoint made",
    Verb.APPLY_CHECKPOINT: "return to a checkpoint",
    Verb.MERGE: "have its disks' layers merged",
}
