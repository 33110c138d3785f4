"""Points that are no longer kept: their changes join the next point's, the oldest ones' go into the base.

Joining copies no data: two indexes become one, and what the newer overwrote becomes holes in the journal.
Only what is behind the oldest point is copied, once, into the base. Each step can be repeated after a crash:

    join     longer index durable under its name, holes, shorter indexes removed
    absorb   `index/base` says that the base is no point any more, base written and durable, `index/base`
             names the new oldest point, holes, index removed
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.replication.store.errors import ReplicaDamaged
from holdfast.replication.store.holdings import Holdings
from holdfast.replication.store.index import BLOCK, Blocks, Changes, Index, Merging
from holdfast.replication.store.record import reason_lost
from holdfast.replication.store.verifying import damage_of
from holdfast.replication.store.view import adjacent, read_checked
from holdfast.spec.units import MIB

_SYNCED = 16 * MIB
"""Bytes after which the base is synced, so that nobody waits long for all of it."""


@dataclass(frozen=True)
class Pruned:
    dropped: int
    """Points that are gone."""
    copied: int
    """Bytes that went into the base."""
    holed: int
    """Bytes of the journal that were given back."""


def prune(holdings: Holdings, kept: Collection[int]) -> Pruned:
    """Drop all points but `kept`, those that are open or pinned, and the newest.

    While a point is open the base stays as it is, since the point reads it. Where somebody waits to open or
    read a point, the copying into the base stops and is begun anew the next time.

    Raises:
        ReplicaDamaged: something that is needed is not what arrived; which points are lost is remembered.
        OSError: it cannot be written. What was not yet done is done the next time.
    """
    with holdings.upkeep:
        heads = holdings.heads
        if not heads:
            return Pruned(0, 0, 0)
        wanted = {heads[-1].last} | {each.number for each in holdings.opened.values()}
        pinned = {number for numbers in holdings.pins.values() for number in numbers}
        wanted |= {
            head.last
            for head in heads
            if head.last in pinned.union(kept) and not reason_lost(head, holdings.damages)
        }
        copied = holed = 0
        for group in _groups(holdings.spans, wanted):
            holed += _join(holdings, group)
        oldest = next(head for head in heads if head.last in wanted)
        behind = [each for each in holdings.spans if each.head.last <= oldest.last]
        if behind and not holdings.opened and not reason_lost(oldest, holdings.damages):
            copied, freed = _Absorbing(holdings, behind).run()
            holed += freed
        holdings.drop_damages()
        return Pruned(len(heads) - len(holdings.heads), copied, holed)


def _groups(spans: Sequence[Index], wanted: Collection[int]) -> Iterator[list[Index]]:
    """Spans to be joined: each group ends with a wanted point."""
    group: list[Index] = []
    for each in list(spans):
        group.append(each)
        if each.head.last in wanted:
            if len(group) > 1:
                yield group
            group = []


def _join(holdings: Holdings, group: Sequence[Index]) -> int:
    """Bytes that were given back."""
    _require(holdings, group)
    merging = {disk: Merging([each.changes(disk) for each in group]) for disk in _disks(group)}
    attachments: dict[str, bytes] = {}
    for each in group:
        attachments |= each.attachments()
    head = group[-1].head.model_copy(
        update={"first": group[0].head.first, "received": sum(each.head.received for each in group)}
    )
    joined = holdings.write_index(head, merging, attachments)
    with holdings.lock:
        at = holdings.spans.index(group[0])
        holdings.spans[at : at + len(group)] = [joined]
    dead = np.concatenate([each.dead() for each in merging.values()])
    holdings.journal.free(dead)
    holdings.remove_indexes(group)
    return len(dead) * BLOCK


def _disks(group: Sequence[Index]) -> list[str]:
    return sorted({section.disk for each in group for section in each.head.sections})


def _require(holdings: Holdings, group: Sequence[Index]) -> None:
    for each in group:
        if not holdings.usable(each):
            raise _damaged(holdings)


def _damaged(holdings: Holdings) -> ReplicaDamaged:
    newest = holdings.damages[-1]
    return ReplicaDamaged(
        f"the replica in {holdings.folder.name} is damaged: {newest.reason}",
        value=holdings.folder.name,
        cure="Points that do not need it can still be opened; comparing with the source mends the rest.",
        detail=newest.model_dump(mode="json"),
    )


class _Absorbing:
    """Spans that end with the oldest point, going into the base."""

    def __init__(self, holdings: Holdings, group: Sequence[Index]) -> None:
        self._holdings = holdings
        self._group = group
        self._head = group[-1].head

    def run(self) -> tuple[int, int]:
        """Bytes copied, and bytes of the journal given back."""
        holdings, files = self._holdings, self._holdings.files
        _require(holdings, self._group)
        before: dict[str, int] = {}
        if holdings.base is not None:
            before = dict(holdings.base.head.disks)
            overwritten = holdings.base.head.model_copy(update={"overwritten": True})
            holdings.write_base(overwritten, holdings.base.attachments())
        copied = 0
        for disk, size in self._head.disks.items():
            copied += self._absorb(disk)
            if holdings.readers:
                return copied, 0
            files.truncate(holdings.base_path(disk), size)
            files.sync(holdings.base_path(disk))
        files.sync_folder(holdings.folder / "base")
        attachments = holdings.attachments(self._head.last)
        head = self._head.model_copy(update={"first": 1, "sections": (), "attached": (), "files": ()})
        holdings.write_base(head, attachments)
        places = self._places()
        holdings.journal.free(places)
        holdings.remove_indexes(self._group)
        for disk in before.keys() - self._head.disks.keys():
            files.remove(holdings.base_path(disk))
        holdings.journal.keep_only(holdings.needed_files())
        return copied, len(places) * BLOCK

    def _absorb(self, disk: str) -> int:
        holdings, path = self._holdings, self._holdings.base_path(disk)
        spans: list[Changes] = [each.changes(disk) for each in self._group]
        merging, copied, unsynced = Merging(spans), 0, 0
        for first, count in merging.zeros.tolist():
            holdings.files.discard(path, first * BLOCK, count * BLOCK)
        for part in merging.entries():
            for run in adjacent(part):
                data, bad = read_checked(holdings, run)
                if bad:
                    self._say_damage(disk, run["block"][bad])
                    raise _damaged(holdings)
                holdings.files.write(path, int(run["block"][0]) * BLOCK, data)
                copied += len(data)
                unsynced += len(data)
                if holdings.readers:
                    return copied
                if unsynced >= _SYNCED:
                    holdings.files.sync(path)
                    unsynced = 0
        return copied

    def _say_damage(self, disk: str, blocks: Blocks) -> None:
        """The newest span that has the blocks is the one that counts."""
        for each in reversed(self._group):
            mine = blocks[np.isin(blocks, each.changes(disk).entries["block"])]
            if len(mine):
                self._holdings.add_damage(damage_of(self._holdings, each, disk, mine))
                return

    def _places(self) -> Blocks:
        return np.concatenate(
            [
                each.changes(section.disk).entries["at"]
                for each in self._group
                for section in each.head.sections
            ]
            + [np.empty(0, np.uint64)]
        )
