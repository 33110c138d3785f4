"""What disks of VMs stand on that are thin over a point of a replica: `storage.volumes.Origins`.

Read from the record of the opened point alone, so it holds over restarts and asks nobody. Who may read the
files is said by their group: they are the daemon's, and a VM's QEMU runs as a user of its own.
"""

import contextlib
import os
from pathlib import Path

from holdfast.host.processes import Identity
from holdfast.replication.store.opened import Opened, read_one
from holdfast.replication.store.points import OpenDisk, disks_of
from holdfast.spec.attachment import FilePlace, Layer, WindowPlace
from holdfast.spec.vm import ReplicaOrigin
from holdfast.storage.volumes import origin_missing

_PASSABLE, _CLOSED = 0o711, 0o700
_SHARED, _PRIVATE = 0o640, 0o600


class ReplicaOrigins:
    """`root`: the folder that all replicas of this host lie in."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def layers(self, origin: ReplicaOrigin, disk: str) -> tuple[Layer, ...]:
        """Top first. Raises OriginMissing."""
        found = self._disk(origin)
        layers = [
            Layer(
                place=WindowPlace(path=each.path, offset=each.offset),
                format="qcow2",
                name=f"{disk}.point{number}",
            )
            for number, each in enumerate(found.layers)
        ]
        if found.base is not None:
            base = Layer(place=FilePlace(path=found.base), format="raw", name=f"{disk}.base")
            layers.insert(0, base)
        return tuple(reversed(layers))

    def grant(self, origin: ReplicaOrigin, identity: Identity | None) -> None:
        """Raises OriginMissing, OSError."""
        if identity is None:
            return  # it runs as the daemon's own user
        disk = self._disk(origin)
        folder = self._root / origin.replica
        for each in (folder, folder / "base", folder / "journal"):
            each.chmod(_PASSABLE)
        for path in _files(disk):
            os.chown(path, -1, identity.gid, follow_symlinks=False)
            path.chmod(_SHARED)

    def revoke(self, replica: str) -> None:
        """No VM may read any of a replica's files. Raises OSError."""
        folder = self._root / replica
        folder.chmod(_CLOSED)
        for name in ("base", "journal"):
            for path in (folder / name).iterdir():
                with contextlib.suppress(FileNotFoundError):  # points are thinned out meanwhile
                    path.chmod(_PRIVATE)

    def _disk(self, origin: ReplicaOrigin) -> OpenDisk:
        folder = self._root / origin.replica
        opened: Opened | None = read_one(folder / "open" / origin.token)
        found = disks_of(folder, opened).get(origin.disk) if opened is not None else None
        if found is None:
            raise origin_missing(origin)
        return found


def _files(disk: OpenDisk) -> set[Path]:
    base = () if disk.base is None else (disk.base,)
    return {*base, *(each.path for each in disk.layers)}
