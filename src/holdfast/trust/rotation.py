"""A new host key for everything that the one before wrapped, with every VM left as it is, running or not.

    new key in use, the one before kept ─▶ every key and container wrapped anew ─▶ the one before removed

A crash after any step leaves every secret openable by a key that is still there; `finish` goes on from there,
and runs at each start of the daemon.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from holdfast.host.files import write_atomic
from holdfast.host.threads import to_its_end
from holdfast.spec.errors import HoldfastError
from holdfast.spec.firmware_state import HostKeyKind
from holdfast.trust import envelope, state_key
from holdfast.trust.bounded import read_bounded
from holdfast.trust.changing import changing
from holdfast.trust.host_key import HostKeys, KeyRing
from holdfast.trust.protection import HostLock, host_key_of
from holdfast.trust.state_key import VtpmMissing

log = structlog.get_logger(__name__)

STATE_SUFFIX = ".hfstate"
KEPT_SUFFIX = ".hfsecret"


@dataclass(frozen=True)
class VmFolder:
    """A VM, with or without a vTPM."""

    id: str
    name: str
    path: Path


@dataclass(frozen=True)
class Rotated:
    rewrapped: int
    unreadable: tuple[str, ...]
    """Names of VMs of which something opens under none of the keys at hand."""


Vms = Callable[[], Awaitable[Iterable[VmFolder]]]
"""Every VM, as of now."""


async def rotate(keys: HostKeys, vms: Vms, to: HostKeyKind | None = None) -> Rotated:
    """Raises NoHostTpm, HostKeySealed, HostKeyDamaged or what the TPM refuses, before anything is changed."""
    async with keys.rotating:
        await keys.ring()  # one that does not open is given up by a recovery only
        await keys.renew(to)
        return await _finish(keys, vms)


async def finish(keys: HostKeys, vms: Vms) -> Rotated:
    """Wrap by the key in use whatever an earlier one wrapped, then remove those that nothing needs."""
    async with keys.rotating:
        return await _finish(keys, vms)


async def _finish(keys: HostKeys, vms: Vms) -> Rotated:
    ring, earlier = await keys.ring(), set(await keys.earlier())
    rewrapped, unreadable, in_use = 0, [], set[str]()
    for vm in await vms():
        try:
            rewrapped += await to_its_end(_rewrap, vm, ring)
        except (HoldfastError, OSError) as error:
            if not vm.path.exists():
                # Being made, renamed or deleted: the next start of the daemon looks again.
                in_use |= earlier
                continue
            log.warning("a key stays wrapped by an earlier host key", vm=vm.name, error=str(error))
            unreadable.append(vm.name)
            # Where it cannot be told which key is needed, all of them stay.
            in_use |= await asyncio.to_thread(_wrapped_by, vm) or earlier
    await keys.drop_earlier(earlier - in_use)
    return Rotated(rewrapped, tuple(unreadable))


def _rewrap(vm: VmFolder, ring: KeyRing) -> bool:
    changed = False
    with _held(vm.path) as folder:
        with contextlib.suppress(VtpmMissing):  # where one is being made, it is wrapped by the key in use
            changed = state_key.rewrap(folder / "firmware", vm.id, ring)
        for path in [*_containers(folder)]:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile: nothing is to be wrapped
                changed = _rewrap_container(path, ring) or changed
    return changed


def _rewrap_container(path: Path, ring: KeyRing) -> bool:
    lock = HostLock(ring)
    with changing:  # what is replaced or removed meanwhile must not come back
        taken = envelope.parse(read_bounded(path, envelope.LONGEST))
        if host_key_of(taken.slot) in (None, ring.current.id):
            return False
        write_atomic(path, taken.locked_for(lock, lock), 0o600)
        return True


@contextlib.contextmanager
def _held(path: Path) -> Iterator[Path]:
    """A folder under a name that stays its own, whatever else comes to lie at `path` meanwhile."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _containers(folder: Path) -> Iterator[Path]:
    """Those that stay on this host, anywhere in a VM's folder."""
    return (path for path in folder.rglob("*") if path.suffix in (STATE_SUFFIX, KEPT_SUFFIX))


def _wrapped_by(vm: VmFolder) -> set[str]:
    found = {state_key.wrapped_by(vm.path / "firmware")}
    for path in _containers(vm.path):
        try:
            found.add(host_key_of(envelope.parse(read_bounded(path, envelope.LONGEST)).slot))
        except (HoldfastError, OSError):
            continue
    return {key for key in found if key}
