"""A VM's TPM 2.0: made once, run by an unprivileged swtpm, encrypted wherever it rests.

    <VM folder>/firmware/
    ├── tpm.key      256-bit key, hexadecimal, of the daemon's user only
    ├── tpm/         swtpm's state, encrypted with it; of the VM's user
    ├── tpm.new/     being manufactured; means nothing
    └── tpm.kept/    the state as it was before a memory image began to be restored

A memory image brings its own TPM state, for which swtpm must begin with an empty folder. The old
state is moved aside first and comes back unless `settle` says that the image runs. The state that
QEMU puts into a memory image is encrypted with a second key derived from the first.
"""

import asyncio
import os
import re
import secrets
import shutil
from io import FileIO
from pathlib import Path

from holdfast.host.files import own, remove_tree, sync_folder, write_atomic
from holdfast.host.folders import StateFolder
from holdfast.host.log_tail import tail
from holdfast.host.processes import Identity, Marked, Processes, ProcessRef
from holdfast.host.unix_sockets import listening
from holdfast.spec.attachment import TpmAttachment
from holdfast.spec.errors import Conflict, Failed, NotFound
from holdfast.trust.endorsement import EndorsementAuthority, derived_key

_ROLE = "swtpm"
_MANUFACTURE_SECONDS = 120.0
_READY_SECONDS = 60.0
_LOG_LINES = 40
_SAID = 4096
_KEY = re.compile(rb"[0-9a-f]{64}")


class VtpmEnded(Failed):
    id = "vtpm-ended"


class VtpmNotMade(Failed):
    id = "vtpm-not-made"


class VtpmMissing(NotFound):
    id = "vtpm-missing"


class VtpmDamaged(Failed):
    id = "vtpm-damaged"


class VtpmRunning(Conflict):
    id = "vtpm-running"


class Vtpm:
    """Makes, starts and stops the TPMs of one state folder's VMs.

    `folder` is everywhere the VM's folder; it must let the VM's user pass through.
    """

    def __init__(self, processes: Processes, state: StateFolder) -> None:
        self._processes = processes
        self._authority = EndorsementAuthority(state.keys)

    async def manufacture(self, vm_id: str, folder: Path, identity: Identity | None = None) -> None:
        """Make a TPM with an identity of its own, in place of any that the folder holds.

        Safe to run again after a crash in its middle.

        Raises:
            VtpmNotMade: swtpm_setup failed; the detail holds what it said.
        """
        self._refuse_running(vm_id)
        firmware = folder / "firmware"
        new = firmware / "tpm.new"
        await asyncio.to_thread(_clear, firmware)
        key = secrets.token_hex(32)
        try:
            await asyncio.to_thread(write_atomic, firmware / "tpm.key", key.encode(), 0o600)
            await asyncio.to_thread(new.mkdir, mode=0o700)
            config = await asyncio.to_thread(self._authority.prepare, new)
            await self._setup(vm_id, new, config, key)
            await asyncio.to_thread(_finish, new, firmware / "tpm", identity)
        except BaseException:
            remove_tree(new)
            raise

    async def _setup(self, vm_id: str, new: Path, config: Path, key: str) -> None:
        with _secret(key) as secret:
            fd = secret.fileno()
            done = await self._processes.run(
                [
                    *("swtpm_setup", "--tpm2", "--tpmstate", f"dir://{new}", "--create-ek-cert"),
                    *("--lock-nvram", "--pcr-banks", "sha256", "--config", str(config), "--vmid", vm_id),
                    *("--keyfile-fd", str(fd), "--cipher", "aes-256-cbc"),
                ],
                owner=f"vm:{vm_id}",
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
    ) -> TpmAttachment:
        """Start the VM's swtpm; it ends by itself when QEMU does.

        `empty` is for restoring a memory image: the present state is moved aside, and afterwards
        exactly one of `settle` (the image runs) and `put_back` (it does not) must follow. A later
        start without `empty` takes a restore that was never settled for failed and puts back.

        Raises:
            VtpmMissing: the folder holds no TPM.
            VtpmDamaged: its key is none.
            VtpmRunning: it runs already.
            VtpmEnded: swtpm ended at once; the detail holds the end of its log.
        """
        self._refuse_running(vm_id)
        key = await asyncio.to_thread(_make_ready, folder / "firmware", empty, identity)
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

    async def copy(self, source: Path, target: Path, identity: Identity | None = None) -> None:
        """Give `target` (another VM's folder) the same TPM: same keys, same identity, same secrets.

        The source must not run. Raises VtpmMissing where it has none, VtpmDamaged where its key is none.
        """
        await asyncio.to_thread(_copy, source / "firmware", target / "firmware", identity)

    async def delete(self, vm_id: str, folder: Path) -> None:
        """End swtpm and remove state and key; the key first, so that no rest can be read."""
        await self.stop(vm_id)
        await asyncio.to_thread(_clear, folder / "firmware")

    def _refuse_running(self, vm_id: str) -> None:
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
    (firmware / "tpm.key").unlink(missing_ok=True)
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


def _make_ready(firmware: Path, empty: bool, identity: Identity | None) -> str:
    """Bring the state folder to where swtpm may start from it; returns the key."""
    _put_back(firmware)
    state = firmware / "tpm"
    if not state.is_dir():
        raise _missing(firmware)
    key = _read_key(firmware)
    if empty:
        state.rename(firmware / "tpm.kept")
        state.mkdir(mode=0o700)
        sync_folder(firmware)
    if identity:
        own(state, identity.uid, identity.gid)
    return key


def _read_key(firmware: Path) -> str:
    path = firmware / "tpm.key"
    try:
        with path.open("rb") as file:
            key = file.read(65)
    except FileNotFoundError as error:
        raise _missing(firmware) from error
    if not _KEY.fullmatch(key):
        raise VtpmDamaged(
            f"{path} holds no key of 64 hexadecimal digits",
            value=str(path),
            cure="Restore the file from a backup: the TPM's state cannot be read without it.",
        )
    return key.decode("ascii")


def _missing(firmware: Path) -> VtpmMissing:
    return VtpmMissing(
        f"there is no TPM state in {firmware}",
        value=str(firmware),
        cure="Restore the folder from a backup, or make the VM again.",
    )


def _put_back(firmware: Path) -> None:
    kept = firmware / "tpm.kept"
    if kept.is_dir():
        remove_tree(firmware / "tpm")
        kept.rename(firmware / "tpm")
        sync_folder(firmware)


def _copy(source: Path, target: Path, identity: Identity | None) -> None:
    if not (source / "tpm").is_dir():
        raise _missing(source)
    key = _read_key(source)
    _clear(target)
    write_atomic(target / "tpm.key", key.encode(), 0o600)
    shutil.copytree(source / "tpm", target / "tpm.new", symlinks=True)
    (target / "tpm.new").chmod(0o700)
    _finish(target / "tpm.new", target / "tpm", identity)
