"""Opening a point: a chain of images that QEMU reads in place, over the journal and the base.

    raw base ◀─ tables over journal file 1 ◀─ ... ◀─ tables over the newest file ◀─ the user's own overlay

Nothing is copied: only tables are written, a millisecond for some thousand blocks. The chain is as long as
the journal has files, however many points there are. It is for reading only; an overlay takes the writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.replication.store.errors import PointLost, PointNotFound, TooManyOpenPoints
from holdfast.replication.store.holdings import NEW, Holdings
from holdfast.replication.store.index import BLOCK, FILE_SHIFT, NO_RANGES, PLACE_MASK, Changes, merged
from holdfast.replication.store.journal import SLOTS, file_of
from holdfast.replication.store.opened import Opened, OpenedDisk, OpenLayer, Region
from holdfast.replication.store.qcow2_tables import Tables
from holdfast.replication.store.record import reason_lost
from holdfast.replication.store.view import View
from holdfast.spec.ids import new_id


@dataclass(frozen=True)
class Layer:
    path: Path
    offset: int
    """Bytes of the file before the image."""


@dataclass(frozen=True)
class OpenDisk:
    size: int
    base: Path | None
    """Raw; None: there is none, what the layers do not hold reads as zeroes."""
    layers: tuple[Layer, ...]
    """qcow2 images, the lowest first."""

    def blockdev(self) -> dict[str, Any]:
        """The chain as QEMU's BlockdevOptions (docs/interop/qemu-qmp-ref), nested, all of it read-only."""
        node: dict[str, Any] | None = None
        if self.base is not None:
            node = {"driver": "raw", "read-only": True, "file": _file(self.base)}
        for layer in self.layers:
            window = {"driver": "raw", "read-only": True, "offset": layer.offset, "file": _file(layer.path)}
            node = {"driver": "qcow2", "read-only": True, "file": window, "backing": node}
        if node is None:
            raise ValueError("a disk without base and layers")
        return node


def disks_of(folder: Path, opened: Opened) -> dict[str, OpenDisk]:
    """What the disks of an open point are made of, in a replica's folder. Reads nothing."""
    found = {}
    for disk in opened.disks:
        layers = tuple(
            Layer(file_of(folder / "journal", each.region.place), each.slot * BLOCK)
            for each in opened.layers
            if each.disk == disk.name
        )
        found[disk.name] = OpenDisk(disk.size, folder / "base" / disk.name if disk.based else None, layers)
    return found


def _file(path: Path) -> dict[str, Any]:
    return {"driver": "file", "filename": str(path), "read-only": True}


@dataclass(frozen=True)
class OpenPoint:
    token: str
    """Names it for `close_point`, also after a restart."""
    number: int
    taken: datetime
    disks: Mapping[str, OpenDisk]
    attachments: Mapping[str, bytes]


def open_point(holdings: Holdings, number: int) -> OpenPoint:
    """Pin a point and make it a chain for each disk.

    Raises:
        PointNotFound, PointLost, TooManyOpenPoints, OSError
    """
    with holdings.reading():
        view = View(holdings, number)
        head = next((each for each in holdings.heads if each.last == number), None)
        if head is None:
            raise PointNotFound(f"there is no point {number}", value=number, cure="List the points.")
        lost = reason_lost(head, holdings.damages)
        if lost:
            raise PointLost(
                f"point {number} is lost: {lost}",
                value=number,
                cure="Choose another point, or compare with the source and use a later one.",
            )
        opening = _Opening(holdings, Opened(token=new_id(), number=number, taken=head.taken))
        for disk, size in head.disks.items():
            opening.disk(view, disk, size)
        opening.record()
        return _described(holdings, opening.opened)


def reopened(holdings: Holdings, token: str) -> OpenPoint:
    """A point that is open, as `open_point` gave it. Raises PointNotFound."""
    with holdings.reading():
        return _described(holdings, _found(holdings, token))


def _described(holdings: Holdings, opened: Opened) -> OpenPoint:
    return OpenPoint(
        token=opened.token,
        number=opened.number,
        taken=opened.taken,
        disks=disks_of(holdings.folder, opened),
        attachments=holdings.attachments(opened.number),
    )


def _found(holdings: Holdings, token: str) -> Opened:
    opened = holdings.opened.get(token)
    if opened is None:
        raise PointNotFound(
            f"no point is open as {token[:36]!r}", value=token[:36], cure="It is closed already."
        )
    return opened


def close_point(holdings: Holdings, token: str) -> None:
    """Nobody reads the point any more. Raises PointNotFound, OSError."""
    with holdings.upkeep:
        opened = _found(holdings, token)
        path = holdings.folder / "open" / opened.token
        holdings.files.remove(path)
        holdings.files.sync_folder(path.parent)
        del holdings.opened[token]
        for layer in opened.layers:
            place, count = layer.region.place, layer.region.blocks
            holdings.journal.free(np.arange(place, place + count, dtype=np.uint64))
            header = (place >> FILE_SHIFT << FILE_SHIFT) | layer.slot
            holdings.journal.free(np.array([header], np.uint64))


class _Opening:
    def __init__(self, holdings: Holdings, opened: Opened) -> None:
        self._holdings = holdings
        self.opened = opened

    def disk(self, view: View, disk: str, size: int) -> None:
        changes, _ = merged(view.spans(disk))
        base = self._holdings.base_path(disk)
        based = base.exists()
        fits = based and base.stat().st_size == size
        numbers = [int(each) for each in np.unique(changes.entries["at"] >> FILE_SHIFT)]
        if not numbers and (len(changes.zeros) or not fits):
            numbers = [self._holdings.journal.end >> FILE_SHIFT]
        for at, number in enumerate(numbers):
            mine = changes.entries[changes.entries["at"] >> FILE_SHIFT == number]
            # What reads as zeroes hides the base; the lowest layer is enough for that.
            self._layer(disk, size, number, Changes(NO_RANGES if at else changes.zeros, mine))
        made = OpenedDisk(name=disk, size=size, based=based)
        self.opened = self.opened.model_copy(update={"disks": (*self.opened.disks, made)})

    def _layer(self, disk: str, size: int, number: int, changes: Changes) -> None:
        journal = self._holdings.journal
        tables = Tables(size, changes.entries, changes.zeros)
        slot, count = self._slot(number), tables.blocks
        place = journal.allocate_in(number, count)
        layer = OpenLayer(disk=disk, slot=slot, region=Region(place=place, blocks=count))
        header, rest = tables.encode(slot * BLOCK, (place & PLACE_MASK) * BLOCK)
        journal.write(place, rest)
        journal.write((number << FILE_SHIFT) | slot, header)
        self.opened = self.opened.model_copy(update={"layers": (*self.opened.layers, layer)})

    def _slot(self, number: int) -> int:
        taken = {
            layer.slot
            for opened in (*self._holdings.opened.values(), self.opened)
            for layer in opened.layers
            if layer.region.place >> FILE_SHIFT == number
        }
        for slot in range(SLOTS):
            if slot not in taken:
                return slot
        raise TooManyOpenPoints(
            f"{SLOTS} disks of points are open already", value=SLOTS, cure="End a test failover first."
        )

    def record(self) -> None:
        holdings, files = self._holdings, self._holdings.files
        holdings.journal.sync()
        self.opened = self.opened.model_copy(update={"end": holdings.journal.end})
        path = holdings.folder / "open" / self.opened.token
        scratch = path.with_name(path.name + NEW)
        files.remove(scratch)
        files.write(scratch, 0, self.opened.model_dump_json().encode())
        files.sync(scratch)
        files.rename(scratch, path)
        files.sync_folder(path.parent)
        with holdings.lock:
            holdings.opened[self.opened.token] = self.opened
