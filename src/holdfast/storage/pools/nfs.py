"""An NFS export as a pool: mounted by the daemon with the kernel's own client, then files as elsewhere.

    <state>/mounts/<first digits of the pool's id>/<VM name>/<volume>.qcow2

Mounted `hard`: while the server is away I/O waits, and no guest sees an error; the mount itself does not
wait for it (nfs(5), retry). Volumes belong to their VMs' users on the server too, so the export must not
squash root.
"""

import asyncio
import contextlib
import os
from pathlib import Path

from holdfast.host.processes import Processes, ToolTimedOut
from holdfast.spec.errors import Failed, InvalidInput
from holdfast.spec.pool import DirectoryPoolSpec, NfsPoolSpec
from holdfast.storage.pools.directory import DirectoryPool
from holdfast.storage.pools.root import RootMark, check_entries

OPTIONS = "hard,nosuid,nodev,noexec,retry=0"
_SECONDS = 60.0
_SOMEBODY = 1_900_000_000  # a uid like those of VMs


class NfsNotMounted(Failed):
    id = "nfs-not-mounted"


class NfsSquashesRoot(InvalidInput):
    id = "nfs-squashes-root"


class NfsPool(DirectoryPool):
    """Fits `Pool`."""

    def __init__(
        self,
        name: str,
        spec: NfsPoolSpec,
        mark: RootMark,
        state: Path,
        processes: Processes,
        mounts: Path = Path("/proc/self/mountinfo"),
    ) -> None:
        root = (state / "mounts" / mark.pool[:8]).absolute()
        super().__init__(name, DirectoryPoolSpec(path=root, format=spec.format), mark, state)
        self.spec = spec
        self._source = spec.target
        self._own = mark
        self._processes = processes
        self._mounts = mounts

    async def make(self) -> None:
        """Raises NfsNotMounted, NfsSquashesRoot, PoolPathNotEmpty, PoolPathTaken, ProgramMissing."""
        await self.open()

        def take() -> None:
            check_entries(self._root, self._own.state)
            if os.geteuid() == 0:
                self._require_owners()
            self._own.write(self._root)

        try:
            await self._at_work(take)
        except BaseException:
            await asyncio.shield(self._unmount())
            raise

    def _require_owners(self) -> None:
        probe = self._root / ".holdfast-probe"
        try:
            probe.touch(mode=0o600)
            os.chown(probe, _SOMEBODY, _SOMEBODY)
        except OSError as error:
            raise NfsSquashesRoot(
                f"{self._source} does not let files be given to VMs' users: {error.strerror}",
                value=self._source,
                cure="Export it with no_root_squash to this host alone.",
            ) from error
        finally:
            probe.unlink(missing_ok=True)

    async def open(self) -> None:
        """Raises NfsNotMounted, ProgramMissing."""
        if await asyncio.to_thread(self._mounted):
            return

        def prepare() -> None:
            for folder in (self._root.parent, self._root):
                folder.mkdir(mode=0o711, exist_ok=True)
                folder.chmod(0o711)

        await asyncio.to_thread(prepare)
        try:
            await self._tool("mount", "-t", "nfs", "-o", OPTIONS, self._source, str(self._root))
        except BaseException:
            with contextlib.suppress(OSError):  # it may have been mounted after all
                self._root.rmdir()
            raise

    async def unmake(self) -> None:
        await super().unmake()
        await self._unmount()

    async def _unmount(self) -> None:
        if await asyncio.to_thread(self._mounted):
            await self._tool("umount", str(self._root))
        await asyncio.to_thread(self._root.rmdir)

    async def _tool(self, *argv: str) -> None:
        try:
            done = await self._processes.run(argv, owner="host", timeout=_SECONDS)
            said = done.stderr.decode(errors="replace").strip()[-500:] if done.returncode else None
        except ToolTimedOut:
            said = f"the server did not answer for {_SECONDS:g} seconds"
        if said is not None:
            raise NfsNotMounted(
                f"{self._source} could not be mounted or unmounted: {said}",
                value=self._source,
                cure="See that the server exports it to this host, that nfs-common is installed, and that"
                " the kernel has the NFS client (`grep nfs /proc/filesystems`).",
            )

    def _mounted(self) -> bool:
        """By the kernel's list (proc_pid_mountinfo(5)), which a dead server does not hold up."""
        point = str(self._root).replace("\\", "\\134").replace(" ", "\\040")
        lines = self._mounts.read_text(errors="replace").splitlines()
        return any(line.split()[4:5] == [point] for line in lines)
