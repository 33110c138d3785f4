"""The replicas on this host, each in a folder with its VM's name.

    store = ReplicaStore(folder)
    replica = store.create("web")                   or store.replica("web")
    incoming = replica.begin(cycle)                 write, zero, resize, attach, then commit or abandon
    replica.points(), replica.prune(kept)           what there is; what is to stay
    opened = replica.open_point(number)             for a test or a failover; close_point(opened.token)

Everything here blocks: call it in a thread. A cycle may arrive while another thread does anything else.
"""

import threading
from collections.abc import Callable, Collection
from pathlib import Path

from holdfast.host.files import allocated, remove_tree, sync_folder
from holdfast.replication.store.errors import (
    CycleRefused,
    ReplicaBusy,
    ReplicaExists,
    ReplicaNotFound,
)
from holdfast.replication.store.files import Files, HostFiles
from holdfast.replication.store.holdings import Holdings
from holdfast.replication.store.incoming import BaseIncoming, Incoming, JournalIncoming
from holdfast.replication.store.index import BLOCK
from holdfast.replication.store.journal import LARGEST
from holdfast.replication.store.point_reading import PointReading
from holdfast.replication.store.points import OpenPoint, close_point, open_point, reopened
from holdfast.replication.store.pruning import Pruned, prune
from holdfast.replication.store.record import Cycle, Damage, Point, points_of, reason_lost
from holdfast.replication.store.verifying import verify
from holdfast.replication.store.view import View
from holdfast.spec.names import check_name
from holdfast.spec.units import MIB

MOST_HASHED = 64 * MIB
"""Bytes that digests are made of in one call."""


class Replica:
    """One VM's. There is one object of it in one process."""

    def __init__(
        self, folder: Path, files: Files | None = None, room: int | None = None, largest_file: int = LARGEST
    ) -> None:
        """Read a replica's folder and finish what a crash interrupted.

        Args:
            room: bytes that it may take on this host, about; None: all there is.
            largest_file: bytes of a journal file from which on the next is begun.
        """
        self._files = files or HostFiles()
        self._holdings = Holdings(folder, self._files, largest_file)
        self._room = room
        self._begin = threading.Lock()
        self._arriving = False

    def close(self) -> None:
        """Nobody uses it any more; a cycle that was arriving is forgotten."""
        self._files.close()

    def points(self) -> tuple[Point, ...]:
        """Cycles that arrived whole and are kept, the oldest first; also those that damage took."""
        with self._holdings.lock:
            return points_of(self._holdings.heads, self._holdings.damages)

    def damages(self) -> tuple[Damage, ...]:
        return self._holdings.damages

    def must_compare(self) -> bool:
        """Whether changes to what is here would be of no use, so that only a comparison helps.

        The newest state is damaged, or missing.
        """
        with self._holdings.lock:
            heads, damages = self._holdings.heads, self._holdings.damages
            if not heads:
                return True
            following = heads[-1].model_copy(update={"last": self._holdings.next_number})
            return bool(reason_lost(following, damages))

    def begun(self) -> bool:
        """Whether something of an initial copy came that was cut off."""
        return not self.points() and any((self._holdings.folder / "base").iterdir())

    def allow(self, room: int | None) -> None:
        """So many bytes it may take on this host from the next cycle on, about; None: all there is."""
        self._room = room

    def opened(self) -> dict[str, int]:
        """Tokens of the points that are open, and their numbers."""
        with self._holdings.lock:
            return {token: each.number for token, each in self._holdings.opened.items()}

    def used(self) -> int:
        """Bytes that it takes on this host's disks, about: files come and go meanwhile."""
        return sum(map(allocated, self._holdings.folder.rglob("*")))

    def begin(self, cycle: Cycle) -> Incoming:
        """A cycle begins to arrive.

        Raises:
            ReplicaBusy: another has neither been committed nor abandoned.
            CycleRefused: it does not change what is here, or its disks are none.
            DiskTooLarge: a disk has more than a replica can hold.
        """
        with self._begin:
            if self._arriving:
                raise ReplicaBusy(
                    f"a cycle of {self._holdings.folder.name} is arriving already",
                    value=self._holdings.folder.name,
                    cure="Wait for it, or end the connection that it comes by.",
                )
            heads = self._holdings.heads
            self._require_follows(cycle, heads[-1].cycle if heads else 0)
            room = None if self._room is None else max(0, self._room - self.used())
            kind = JournalIncoming if heads else BaseIncoming
            incoming: Incoming = kind(self._holdings, cycle, room, self._ended)
            self._arriving = True
            return incoming

    def prune(self, kept: Collection[int]) -> Pruned:
        """Drop all points but these, the open ones and the newest. See `pruning.prune`."""
        return prune(self._holdings, kept)

    def open_point(self, number: int) -> OpenPoint:
        """Make a point a chain that QEMU opens, and keep it. See `points.open_point`."""
        return open_point(self._holdings, number)

    def reopened(self, token: str) -> OpenPoint:
        """A point that is open, as `open_point` gave it, also after a restart. Raises PointNotFound."""
        return reopened(self._holdings, token)

    def close_point(self, token: str) -> None:
        close_point(self._holdings, token)

    def pins(self) -> dict[str, tuple[int, ...]]:
        """Tokens of pins, and the numbers of the points that each keeps."""
        with self._holdings.lock:
            return dict(self._holdings.pins)

    def pin(self, token: str, numbers: Collection[int]) -> None:
        """Keep these points, in place of those that the token kept; none: none. Raises OSError."""
        self._holdings.pin(token, numbers)

    def reading(self, number: int, since: int | None, of: Collection[str] = ()) -> PointReading:
        """A pinned point, to be read; see `PointReading`. Raises PointNotFound, PointLost."""
        return PointReading(self._holdings, number, since, of)

    def verify(self, rest: Callable[[float], None] = lambda _: None) -> tuple[Damage, ...]:
        """Read the whole journal and look for damage; see `verifying.verify`."""
        return verify(self._holdings, rest)

    def hashes(self, disk: str, offset: int, length: int, block: int) -> bytes:
        """BLAKE3 of each `block` bytes of a disk in its newest state. See `View.hashes`.

        Where an initial copy was interrupted, of what came of it. All is zeroes where there is nothing.
        """
        asked = offset >= 0 and 0 < length <= MOST_HASHED and not offset % BLOCK
        if not asked or not 0 < block <= MOST_HASHED or block % BLOCK:
            raise CycleRefused(
                f"hashes of {length} bytes at byte {offset} by {block} bytes",
                value=offset,
                cure="Ask for multiples of 4 KiB, and for 64 MiB at most.",
            )
        with self._holdings.reading():
            return View(self._holdings, None).hashes(check_name(disk), offset, length, block)

    def read(self, number: int, disk: str, offset: int, length: int) -> bytes:
        """A point's content, for tests and small looks; offset and length are multiples of 4 KiB."""
        with self._holdings.reading():
            return bytes(View(self._holdings, number).read(disk, offset // BLOCK, length // BLOCK)[0])

    def attachments(self, number: int) -> dict[str, bytes]:
        """What came beside the disks, as of a point."""
        with self._holdings.reading():
            return self._holdings.attachments(number)

    def _require_follows(self, cycle: Cycle, newest: int) -> None:
        if cycle.compared or (cycle.base == newest and cycle.number > newest):
            return
        if cycle.base == 0 and cycle.number > newest:
            return
        raise CycleRefused(
            f"the source sent cycle {cycle.number}, a change of {cycle.base}; the newest here is {newest}",
            value=cycle.number,
            cure="Compare both sides first.",
        )

    def _ended(self) -> None:
        self._arriving = False


class ReplicaStore:
    """All replicas in one folder of the host. Owns the objects, one a replica."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, Replica] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return sorted(path.name for path in self._root.iterdir() if path.is_dir())

    def folder(self, vm: str) -> Path:
        """Where a replica of that name lies, or would."""
        return self._root / check_name(vm)

    def create(self, vm: str, room: int | None = None) -> Replica:
        """An empty replica. Raises BadName, ReplicaExists, OSError."""
        folder = self._root / check_name(vm)
        with self._lock:
            if any(name.lower() == vm.lower() for name in self.names()):
                raise ReplicaExists(
                    f"there is a replica {vm!r} already", value=vm, cure="Choose another name."
                )
            folder.mkdir(mode=0o700)
            return self._get(vm, room)

    def replica(self, vm: str, room: int | None = None) -> Replica:
        """One that exists. Raises BadName, ReplicaNotFound, OSError."""
        folder = self._root / check_name(vm)
        with self._lock:
            if not folder.is_dir() or folder.is_symlink():
                raise ReplicaNotFound(f"there is no replica {vm!r}", value=vm, cure="List the replicas.")
            return self._get(vm, room)

    def place(self, vm: str, content: Path) -> Replica:
        """A replica without points, in place of what has its name.

        What is known of its disks is to be compared before anything counts.

        Args:
            content: a folder on the same file system with `base/<disk>`, raw and as long as each disk, all of
                it durable; where it is gone, it was placed before. Raises BadName, ReplicaNotFound, OSError.
        """
        folder = self._root / check_name(vm)
        if content.exists():
            self.remove(vm)
            content.rename(folder)
            sync_folder(self._root)
        return self.replica(vm)

    def remove(self, vm: str) -> None:
        """With all its points. Nothing happens where there is none."""
        folder = self._root / check_name(vm)
        with self._lock:
            if vm in self._open:
                self._open.pop(vm).close()
            remove_tree(folder)

    def _get(self, vm: str, room: int | None) -> Replica:
        if vm not in self._open:
            self._open[vm] = Replica(self._root / vm, room=room)
        return self._open[vm]
