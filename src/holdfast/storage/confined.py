"""Work on foreign bytes in a process of ours without rights: how it is started and what it says.

The process gets its order as JSON on standard input and its files as open descriptors. On standard output
it says, a line of JSON each, how far it is (`position`), and at last one of `ended`, `refused`, `full`.
"""

import errno
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.host.confine import confine
from holdfast.host.processes import Identity, Limits, Processes
from holdfast.spec.errors import HoldfastError, RemoteError
from holdfast.spec.units import GIB, MIB, format_size
from holdfast.storage.formats import refusals
from holdfast.storage.qemu_img import ConversionFailed, Progress, no_room

Say = Callable[[dict[str, Any]], None]

_ADDRESS_SPACE = 2 * GIB
_LONGEST_LINE = 64 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSALS: dict[str, type[HoldfastError]] = {
    each.id: each
    for each in vars(refusals).values()
    if isinstance(each, type) and issubclass(each, HoldfastError) and each.__module__ == refusals.__name__
}


@dataclass(frozen=True)
class Confined:
    """One process to run."""

    module: str
    order: dict[str, Any]
    """JSON."""
    fds: Sequence[int]
    total: int
    """What `position` counts up to, in bytes."""
    largest: int
    """Bytes that a file which it writes may have."""
    work: int
    """Bytes that it goes through, for the patience with it."""


async def run_confined(
    processes: Processes, what: Confined, target: Path, *, owner: str, progress: Progress
) -> dict[str, Any]:
    """Run it to its end; what it says of it, and `memory`, the bytes that it had at most.

    Raises:
        What it refuses, if a class of `formats.refusals`; else RemoteError with the same words.
        NoSpace, ConversionFailed: it could not make `target`.
    """
    said: dict[str, Any] = {}

    def take(line: bytes) -> None:
        said.update(json.loads(line))
        if "position" in said:
            text = f"{format_size(said['position'])} of {format_size(what.total)}"
            progress(said["position"] / max(what.total, 1), text)

    done = await processes.run(
        [sys.executable, "-I", "-m", what.module],
        owner=owner,
        limits=Limits(
            address_space=_ADDRESS_SPACE,
            cpu_seconds=600 + what.work // (10 * MIB),
            file_size=what.largest,
            open_files=64 + len(what.fds),
        ),
        stdin=json.dumps(what.order).encode(),
        pass_fds=what.fds,
        env={"MALLOC_ARENA_MAX": "2"},
        on_stdout=_lines(take),
    )
    if done.returncode == 0 and "ended" in said:
        return dict(said["ended"])
    if "refused" in said:
        raise _rebuilt(said["refused"])
    if said.get("full"):
        raise no_room(target)
    log = done.stderr.decode(errors="replace").strip()[-2000:]
    last = log.splitlines()[-1] if log else f"it ended with status {done.returncode}"
    raise ConversionFailed(
        f"{target.name} could not be made: {last}",
        value=target.name,
        cure="Check the source with `qemu-img check` where it was made.",
        detail={"log": log},
    )


def work_confined(
    uid: int | None, gid: int | None, parent: int, work: Callable[[Say], dict[str, Any]]
) -> int:
    """In the process: give all rights up, do the work, say how it ended. Returns the exit status."""
    confine(Identity(uid, gid) if uid is not None and gid is not None else None, parent)

    def say(what: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    try:
        ended = work(say)
        say({"ended": {**ended, "memory": _peak_memory()}})
    except HoldfastError as error:
        say({"refused": error.as_dict()})
    except OSError as error:
        if error.errno not in _FULL:
            raise
        say({"full": True})
    return 0


def _peak_memory() -> int:
    """Bytes of memory that this process had at most (VmHWM of proc(5))."""
    with Path("/proc/self/status").open(encoding="ascii") as file:
        found = next((line for line in file if line.startswith("VmHWM:")), "VmHWM: 0")
    return int(found.split()[1]) * 1024


def _lines(take: Callable[[bytes], None]) -> Callable[[bytes], None]:
    waiting = bytearray()

    def heard(chunk: bytes) -> None:
        waiting.extend(chunk)
        *lines, rest = waiting.split(b"\n")
        for line in lines:
            take(bytes(line))
        waiting[:] = rest[:_LONGEST_LINE]

    return heard


def _rebuilt(wire: dict[str, Any]) -> HoldfastError:
    kind = _REFUSALS.get(str(wire["id"]))
    if kind is None:
        return RemoteError(wire)
    return kind(wire["message"], value=wire["value"], cure=wire["cure"], detail=wire["detail"])
