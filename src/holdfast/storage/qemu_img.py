"""One bounded run of qemu-img, and what its failures mean. No state.

Every file that qemu-img reads here is named with its format; nothing is probed, and no name that
stands in a file's header is followed.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.host.files import in_memory
from holdfast.host.processes import Completed, Identity, Limits, Processes
from holdfast.host.space import NoSpace, free_space
from holdfast.spec.errors import Failed
from holdfast.spec.units import GIB, MIB, format_size

Progress = Callable[[float, str], None]
"""Told the part done, 0 to 1, and a word on it."""

_ADDRESS_SPACE = 4 * GIB
_RESERVE = 512 * MIB
"""Bytes of the file system that a conversion leaves to the catalog and to running VMs."""
_ENDLESS = 1 << 62
_PERCENT = re.compile(rb"\((\d{1,3}\.\d\d)/100%\)")
_SIGXFSZ = 25


class ConversionFailed(Failed):
    id = "conversion-failed"


async def qemu_img(
    processes: Processes,
    arguments: Sequence[str],
    *,
    owner: str,
    target: Path | None,
    identity: Identity | None = None,
    largest: int | None = None,
    apparent: int = 0,
    secrets: Mapping[str, bytes] | None = None,
    cpu_seconds: int = 600,
    progress: Progress | None = None,
    heard: Callable[[bytes], None] | None = None,
) -> Completed:
    """Run `qemu-img ARGUMENTS`, which writes `target` of at most `largest` bytes.

    `target` of None is no file. `apparent` is the length of a file that is mostly holes, whatever room
    there is. `secrets` become secret objects, which are read from descriptors and stand nowhere. `heard`
    gets standard output as it comes, of which the result holds the end only.

    Raises:
        NoSpace: the file system has no room for the result.
        ConversionFailed: qemu-img gave up; the detail holds the end of what it said.
    """
    room = _ENDLESS  # a device is as large as it is
    if target is not None and not target.is_block_device():
        room = room_for(target)
    limits = Limits(
        address_space=_ADDRESS_SPACE,
        cpu_seconds=cpu_seconds,
        file_size=max(min(room, largest) if largest else room, apparent),
        open_files=256,  # a chain may have many layers
    )
    fds = {name: in_memory(name, secret) for name, secret in (secrets or {}).items()}
    objects = [f"--object=secret,id={name},file=/dev/fd/{fd}" for name, fd in fds.items()]
    try:
        done = await processes.run(
            ["qemu-img", arguments[0], *objects, *arguments[1:]],
            owner=owner,
            identity=identity,
            limits=limits,
            on_stdout=_percentages(progress) if progress else heard,
            pass_fds=tuple(fds.values()),
        )
    finally:
        for fd in fds.values():
            os.close(fd)
    if done.returncode:
        raise _failure(done, target)
    return done


def room_for(target: Path) -> int:
    """Bytes by which a file may grow, so that the catalog and running VMs have room left."""
    return max(free_space(target.parent)[0] - _RESERVE, 16 * MIB)


def _percentages(progress: Progress) -> Callable[[bytes], None]:
    def seen(chunk: bytes) -> None:
        found = _PERCENT.findall(chunk)
        if found:
            progress(float(found[-1]) / 100, "")

    return seen


def _failure(done: Completed, target: Path | None) -> NoSpace | ConversionFailed:
    said = done.stderr.decode(errors="replace").strip()[-2000:]
    full = "No space left" in said or "File too large" in said or done.returncode == -_SIGXFSZ
    if full and target is not None:
        return no_room(target, log=said)
    last = said.splitlines()[-1] if said else f"it ended with status {done.returncode}"
    return ConversionFailed(
        f"qemu-img could not make {target.name if target else 'a volume'}: {last}",
        value=target.name if target else None,
        cure="Check the source file with `qemu-img check` where it was made.",
        detail={"log": said},
    )


def no_room(target: Path, **detail: Any) -> NoSpace:
    """What to raise where a file could not grow any more."""
    free, _ = free_space(target.parent)
    return NoSpace(
        f"no room is left at {target.parent} ({format_size(free)} are free)",
        value=str(target.parent),
        cure="Free some space there, for example by deleting images that no VM uses.",
        detail={**detail, "free": free},
    )
