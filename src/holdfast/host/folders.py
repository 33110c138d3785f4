"""The state folder: where everything durable of one daemon lies, and the lock that keeps it to one.

root/                     durable; /var/lib/holdfast or $XDG_DATA_HOME/holdfast
├── catalog.sqlite        records          ├── operations.sqlite  steps of long work
├── images/<digest>/      images           ├── vms/<VM name>/     a VM's disks, firmware, logs
├── switches/<name>/      dnsmasq          ├── keys/              certificates, host key (0700)
├── firmware/             variable stores to copy (0700)
├── replicas/<VM name>/   replicas of other hosts' VMs
├── replica-history.sqlite, replica-limits.json   of replicas that are sent
├── scratch/              half-made files   └── reserve            room for records on a full disk
runtime/                  sockets; /run/holdfast or $XDG_RUNTIME_DIR/holdfast; short, since a UNIX
└── vm/<8 hex>/           socket's path has at most 107 bytes (unix(7))
"""

import fcntl
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from holdfast.spec.errors import Conflict, InvalidInput

_LONGEST_RUNTIME = 70  # leaves room for /vm/xxxxxxxx/some-name.sock


class FolderInUse(Conflict):
    id = "state-folder-in-use"


class PathTooLong(InvalidInput):
    id = "path-too-long"


class FolderNotPassable(InvalidInput):
    id = "folder-not-passable"


class FolderLock:
    """Held while a daemon uses the folder; the kernel lets go of it when the process ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True)
class StateFolder:
    root: Path
    runtime: Path

    @property
    def mark(self) -> str:
        """Short text that names this folder in its children's environment."""
        return hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:16]

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.sqlite"

    @property
    def operations(self) -> Path:
        return self.root / "operations.sqlite"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def vms(self) -> Path:
        return self.root / "vms"

    @property
    def switches(self) -> Path:
        return self.root / "switches"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def firmware(self) -> Path:
        return self.root / "firmware"

    @property
    def replica_history(self) -> Path:
        return self.root / "replica-history.sqlite"

    @property
    def replica_limits(self) -> Path:
        return self.root / "replica-limits.json"

    @property
    def replicas(self) -> Path:
        return self.root / "replicas"

    @property
    def reserve(self) -> Path:
        return self.root / "reserve"

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    @property
    def socket(self) -> Path:
        return self.runtime / "holdfast.sock"

    def vm(self, name: str) -> Path:
        return self.vms / name

    def vm_runtime(self, vm_id: str) -> Path:
        return self.runtime / "vm" / vm_id[:8]

    def prepare(self) -> None:
        """Make every folder. VM processes run as other users: they may pass through, not look around."""
        if len(os.fsencode(self.runtime)) > _LONGEST_RUNTIME:
            raise PathTooLong(
                f"the run-time folder {self.runtime} has a path of more than {_LONGEST_RUNTIME} bytes",
                value=str(self.runtime),
                cure="Choose a shorter folder (option --runtime or HOLDFAST_RUNTIME): UNIX sockets need it.",
            )
        for folder, mode in (
            (self.root, 0o711),
            (self.images, 0o711),
            (self.vms, 0o711),
            (self.switches, 0o711),
            (self.replicas, 0o711),
            (self.keys, 0o700),
            (self.firmware, 0o700),
            (self.scratch, 0o711),
            (self.runtime, 0o711),
            (self.runtime / "vm", 0o711),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)

    def require_passable(self) -> None:
        """For a daemon whose VMs run as users of their own: they must be able to pass through.

        Raises:
            FolderNotPassable: a folder above lets nobody else pass; the value is its path.
        """
        for folder in (self.root, *self.root.parents, self.runtime, *self.runtime.parents):
            if not folder.stat().st_mode & 0o001:
                raise FolderNotPassable(
                    f"VMs run as users of their own, and {folder} lets them not pass to {self.root}",
                    value=str(folder),
                    cure=f"Choose another state folder, or allow passing: chmod o+x {folder}",
                )

    def lock(self) -> FolderLock:
        """Take the folder for this process.

        Raises:
            FolderInUse: another daemon has it; the value is its process id.
        """
        path = self.root / "lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 32).decode(errors="replace").strip()
            os.close(fd)
            raise FolderInUse(
                f"another daemon (process {holder or 'unknown'}) already uses the state folder {self.root}",
                value=str(self.root),
                cure="Stop it first, or give this daemon a folder of its own with --state.",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return FolderLock(fd)
