"""A VM's TPM 2.0: made once, run by an unprivileged swtpm, encrypted wherever it rests.

    <VM folder>/firmware/
    ├── tpm.key.json the state's 256-bit key, wrapped (`trust.state_key`)
    ├── tpm/         swtpm's state, encrypted with it; of the VM's user
    ├── tpm.new/     being manufactured; means nothing
    └── tpm.kept/    the state as it was before a memory image began to be restored

A memory image brings its own TPM state, for which swtpm must begin with an empty folder. The old
state is moved aside first and comes back unless `settle` says that the image runs. The state that
QEMU puts into a memory image is encrypted with a second key derived from the first.
"""

import asyncio
import os
from io import FileIO
from pathlib import Path

from holdfast.host.files import own, remove_tree, sync_folder
from holdfast.host.folders import StateFolder
from holdfast.host.log_tail import tail
from holdfast.host.processes import Identity, Marked, Processes, ProcessRef
from holdfast.host.threads import to_its_end
from holdfast.host.unix_sockets import listening
from holdfast.spec.attachment import TpmAttachment
from holdfast.spec.errors import Conflict, Failed
from holdfast.spec.ids import new_id
from holdfast.trust import state_key
from holdfast.trust.bounded import read_bounded
from holdfast.trust.endorsement import EndorsementAuthority, derived_key
from holdfast.trust.firmware_folder import settle_folder
from holdfast.trust.host_key import HostKeys, KeyRing
from holdfast.trust.state_key import VtpmDamaged, VtpmMissing
from holdfast.trust.swtpm_state import (
    LONGEST_STATE,
    OLDEST,
    STATE_FILE,
    StateFormat,
    VtpmStateDamaged,
    require_readable,
    state_format,
)

__all__ = ["Vtpm", "VtpmDamaged", "VtpmEnded", "VtpmMissing", "VtpmNotMade", "VtpmRunning"]

_ROLE = "swtpm"
_MANUFACTURE_SECONDS = 120.0
_READY_SECONDS = 60.0
_LOG_LINES = 40
_SAID = 4096


class VtpmEnded(Failed):
    id = "vtpm-ended"


class VtpmNotMade(Failed):
    id = "vtpm-not-made"


class VtpmRunning(Conflict):
    id = "vtpm-running"


class Vtpm:
    """Makes, starts and stops the TPMs of one state folder's VMs.

    `folder` is everywhere the VM's folder; it must let the VM's user pass through.
    """

    def __init__(self, processes: Processes, state: StateFolder, keys: HostKeys) -> None:
        self._processes = processes
        self.authority = EndorsementAuthority(state.keys)
        self._keys = keys
        self._scratch = state.scratch
        self._readable: StateFormat | None = None

    async def manufacture(self, vm_id: str, folder: Path, identity: Identity | None = None) -> None:
        """Make a TPM with an identity of its own, in place of any that the folder holds.

        Safe to run again after a crash in its middle.

        Raises:
            VtpmNotMade: swtpm_setup failed; the detail holds what it said.
            HostKeySealed, HostKeyDamaged: the host key that wraps its key is not to be had.
        """
        self.refuse_running(vm_id)
        firmware = folder / "firmware"
        new = firmware / "tpm.new"
        await asyncio.to_thread(_clear, firmware)
        key = state_key.new_state_key()
        try:
            async with self._keys.wrapping() as ring:
                await to_its_end(state_key.store, firmware, vm_id, key, ring)
            await asyncio.to_thread(new.mkdir, mode=0o700)
            config = await asyncio.to_thread(self.authority.prepare, new)
            await self._setup(
                f"vm:{vm_id}", new, key, "--create-ek-cert", "--config", str(config), "--vmid", vm_id
            )
            await asyncio.to_thread(_finish, new, firmware / "tpm", identity)
        except BaseException:
            remove_tree(new)
            raise

    async def readable(self) -> StateFormat:
        """The format that this host's libtpms writes, and so the newest that it surely reads.

        Found out once, by a TPM that is made and thrown away: no program tells it. Our settings name no
        profile, so that a newer libtpms (0.10) goes on writing what an older one reads.
        """
        if self._readable is None:
            trial, key = self._scratch / f"tpm-{new_id()}", state_key.new_state_key()
            try:
                await asyncio.to_thread(trial.mkdir, mode=0o700)
                options = trial / "setup.conf"
                await asyncio.to_thread(options.write_text, "")
                await self._setup("host", trial, key, "--config", str(options))
                data = await asyncio.to_thread(read_bounded, trial / STATE_FILE, LONGEST_STATE)
                self._readable = state_format(data, key, "a new TPM")
            finally:
                await asyncio.to_thread(remove_tree, trial)
        return self._readable

    async def _setup(self, owner: str, new: Path, key: bytes, *more: str) -> None:
        with _secret(key.hex()) as secret:
            fd = secret.fileno()
            done = await self._processes.run(
                [
                    *("swtpm_setup", "--tpm2", "--tpmstate", f"dir://{new}", *more),
                    *("--lock-nvram", "--pcr-banks", "sha256"),
                    *("--keyfile-fd", str(fd), "--cipher", "aes-256-cbc"),
                ],
                owner=owner,
                timeout=_MANUFACTURE_SECONDS,
                pass_fds=(fd,),
            )
        if done.returncode != 0:
            said = (done.stdout + done.stderr)[-_SAID:].decode(errors="replace")
            raise VtpmNotMade(
                f"swtpm_setup ended with code {done.returncode}",
                value=done.returncode,
                cure="Check that the packages `swtpm` and `swtpm-tools` are whole and space is left.",
                detail={"log": said},
            )

    async def start(
        self,
        vm_id: str,
        folder: Path,
        runtime: Path,
        identity: Identity | None = None,
        *,
        empty: bool = False,
        guard_key: bytes | None = None,
    ) -> TpmAttachment:
        """Start the VM's swtpm; it ends by itself when QEMU does.

        `empty` is for restoring a memory image: the present state is moved aside, and afterwards
        exactly one of `settle` (the image runs) and `put_back` (it does not) must follow. A later
        start without `empty` takes a restore that was never settled for failed and puts back.

        Raises:
            VtpmMissing: the folder holds no TPM.
            VtpmDamaged, VtpmKeyOfAnotherVm, WrappedByAnotherHost: its key cannot be had.
            VtpmKeyGuarded: its key needs `guard_key`, which a verifier releases to attested hosts.
            VtpmStateDamaged, VtpmStateOtherKey, VtpmStateNewer: its state is not to be used.
            HostKeySealed, HostKeyDamaged: the host key is not to be had.
            VtpmRunning: it runs already.
            VtpmEnded: swtpm ended at once; the detail holds the end of its log.
        """
        self.refuse_running(vm_id)
        await asyncio.to_thread(settle_folder, folder)
        async with self._keys.wrapping() as ring:
            _, secret, found = await to_its_end(read_state, folder / "firmware", vm_id, ring, guard_key)
        if found.least > OLDEST.version:
            require_readable(found, await self.readable(), f"VM {vm_id}")
        await asyncio.to_thread(_make_ready, folder / "firmware", empty, identity)
        key = secret.hex()
        path, signal = runtime / "swtpm.sock", runtime / "swtpm.ready"
        log = folder / "swtpm.log"
        try:
            with _fifo(signal, identity) as ready:
                ref = await self._spawn(vm_id, folder, path, signal, key, identity, log)
                await self._wait_ready(ref, ready.fileno(), log)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            signal.unlink(missing_ok=True)
        return TpmAttachment(socket=path)

    async def _spawn(
        self,
        vm_id: str,
        folder: Path,
        path: Path,
        signal: Path,
        key: str,
        identity: Identity | None,
        log: Path,
    ) -> ProcessRef:
        modes = "mode=aes-256-cbc,format=hex"
        with (
            listening(path, identity) as listener,
            _secret(key) as state_key,
            _secret(derived_key(key, "migration")) as migration_key,
        ):
            fds = (listener.fileno(), state_key.fileno(), migration_key.fileno())
            return await self._processes.spawn(
                [
                    *("swtpm", "socket", "--tpm2", "--terminate"),
                    *("--tpmstate", f"dir={folder / 'firmware' / 'tpm'},mode=0600"),
                    *("--ctrl", f"type=unixio,fd={fds[0]}"),
                    *("--key", f"fd={fds[1]},{modes}", "--migration-key", f"fd={fds[2]},{modes}"),
                    *("--pid", f"file={signal}"),
                ],
                owner=f"vm:{vm_id}",
                role=_ROLE,
                log=log,
                identity=identity,
                pass_fds=fds,
            )

    async def _wait_ready(self, ref: ProcessRef, ready: int, log: Path) -> None:
        """swtpm writes its process id into the FIFO once it serves."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(ready, readable.set)
        ended = asyncio.ensure_future(self._processes.wait(ref))
        written = asyncio.ensure_future(readable.wait())
        try:
            await asyncio.wait((ended, written), timeout=_READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            serving = readable.is_set() and bool(os.read(ready, 32))
        except BaseException:
            await self._processes.end(ref, grace=0.5)
            raise
        finally:
            loop.remove_reader(ready)
            ended.cancel()
            written.cancel()
        if not serving:
            await self._processes.end(ref, grace=0.5)
            raise VtpmEnded(
                "swtpm ended before it served its TPM",
                value=ref.pid,
                cure="See the end of its log in the detail.",
                detail={"log": "\n".join(await asyncio.to_thread(tail, log, _LOG_LINES))},
            )

    async def is_guarded(self, folder: Path) -> bool:
        """Whether the key opens only with what a verifier releases to attested hosts."""
        return await asyncio.to_thread(state_key.is_guarded, folder / "firmware")

    async def guard(self, vm_id: str, folder: Path, guard_key: bytes) -> None:
        """Let the key open only together with `guard_key` from now on. Raises as `start`."""
        async with self._keys.wrapping() as ring:
            await to_its_end(state_key.guard, folder / "firmware", vm_id, ring, guard_key)

    async def unguard(self, vm_id: str, folder: Path, guard_key: bytes) -> None:
        """Let the key open by the host key alone again. Raises as `start`."""
        async with self._keys.wrapping() as ring:
            await to_its_end(state_key.unguard, folder / "firmware", vm_id, ring, guard_key)

    def find(self, vm_id: str) -> Marked | None:
        """The VM's running swtpm, also one started by an earlier daemon."""
        found = self._processes.find(owner=f"vm:{vm_id}", role=_ROLE)
        return found[0] if found else None

    async def stop(self, vm_id: str) -> None:
        """End the VM's swtpm if there is one; returns when it is gone."""
        for marked in self._processes.find(owner=f"vm:{vm_id}", role=_ROLE):
            await self._processes.end(marked.ref)

    async def settle(self, folder: Path) -> None:
        """The memory image runs: forget the TPM state from before it. Safe to repeat."""
        await asyncio.to_thread(remove_tree, folder / "firmware" / "tpm.kept")

    async def put_back(self, vm_id: str, folder: Path) -> None:
        """The restore failed: end its swtpm and bring the state from before it back. Safe to repeat."""
        await self.stop(vm_id)
        await asyncio.to_thread(_put_back, folder / "firmware")

    async def delete(self, vm_id: str, folder: Path) -> None:
        """End swtpm and remove state and key; the key first, so that no rest can be read."""
        await self.stop(vm_id)
        await asyncio.to_thread(_clear, folder / "firmware")

    def refuse_running(self, vm_id: str) -> None:
        """Raises VtpmRunning where the VM's swtpm runs."""
        running = self.find(vm_id)
        if running is not None:
            raise VtpmRunning(
                f"the TPM of VM {vm_id} is running (process {running.ref.pid})",
                value=running.ref.pid,
                cure="Stop the VM first.",
            )


def _secret(text: str) -> FileIO:
    """A descriptor from which a child reads a secret that is in no file and on no command line."""
    file = FileIO(os.memfd_create("key", os.MFD_CLOEXEC), "r+")
    try:
        file.write(text.encode())
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _fifo(path: Path, identity: Identity | None) -> FileIO:
    """Reading end of a new FIFO that the child may write to."""
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    if identity:
        os.chown(path, identity.uid, identity.gid)
    return FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _clear(firmware: Path) -> None:
    firmware.mkdir(mode=0o711, parents=True, exist_ok=True)
    state_key.forget(firmware)
    for name in ("tpm", "tpm.new", "tpm.kept"):
        remove_tree(firmware / name)
    sync_folder(firmware)


def _finish(new: Path, target: Path, identity: Identity | None) -> None:
    for entry in new.iterdir():
        if entry.suffix != ".permall":
            if entry.is_dir():
                remove_tree(entry)
            else:
                entry.unlink()
            continue
        fd = os.open(entry, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    if identity:
        own(new, identity.uid, identity.gid)
    sync_folder(new)
    new.rename(target)
    sync_folder(target.parent)


def read_state(
    firmware: Path, vm_id: str, ring: KeyRing, guard_key: bytes | None = None
) -> tuple[bytes, bytes, StateFormat]:
    """A TPM at rest: its state file, the key that encrypts it, and the versions in it.

    A restore that was never settled is put back first. Raises as `Vtpm.start`.
    """
    _put_back(firmware)
    if not (firmware / "tpm").is_dir():
        raise state_key.missing(firmware)
    key = state_key.load(firmware, vm_id, ring, guard_key)
    try:
        data = read_bounded(firmware / "tpm" / STATE_FILE, LONGEST_STATE)
    except FileNotFoundError as error:
        raise state_key.missing(firmware) from error
    except OSError as error:
        raise VtpmStateDamaged(
            f"the TPM state of VM {vm_id} cannot be read: {error.strerror}",
            value=str(firmware / "tpm" / STATE_FILE),
            cure="Import the state that was exported of this VM: `holdfast trust import-state`.",
        ) from error
    return data, key, state_format(data, key, f"VM {vm_id}")


def _make_ready(firmware: Path, empty: bool, identity: Identity | None) -> None:
    """Bring the state folder to where swtpm may start from it."""
    state = firmware / "tpm"
    if empty:
        state.rename(firmware / "tpm.kept")
        state.mkdir(mode=0o700)
        sync_folder(firmware)
    if identity:
        own(state, identity.uid, identity.gid)


def _put_back(firmware: Path) -> None:
    kept = firmware / "tpm.kept"
    if kept.is_dir():
        remove_tree(firmware / "tpm")
        kept.rename(firmware / "tpm")
        sync_folder(firmware)
