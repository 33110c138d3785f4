"""Looks for damage: every block of the journal against its checksum, every index against its digest."""

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from holdfast.replication.store.holdings import Holdings
from holdfast.replication.store.index import Blocks, Entries, Index, covered
from holdfast.replication.store.record import Damage
from holdfast.replication.store.view import adjacent, read_checked

_NO_BLOCKS: Blocks = np.empty(0, np.uint64)


def verify(holdings: Holdings, rest: Callable[[float], None] = lambda _: None) -> tuple[Damage, ...]:
    """All damages that are known afterwards. Reads the whole journal; the base has no checksums.

    The base is compared with the source instead (`hashes`). Others may read and prune between two spans.

    `rest`: told after each span how many seconds it took; it may wait.
    """
    for index in list(holdings.spans):
        begun = time.monotonic()
        with holdings.upkeep:
            if any(each is index for each in holdings.spans):  # nothing stands for it by now
                _verify(holdings, index)
        rest(time.monotonic() - begun)
    return holdings.damages


def _verify(holdings: Holdings, index: Index) -> None:
    if not holdings.usable(index, again=True):
        return
    for section in index.head.sections:
        entries = index.changes(section.disk).entries
        bad = np.concatenate([_NO_BLOCKS, *(run["block"][bad] for run, bad in _damaged(holdings, entries))])
        if len(bad):
            holdings.add_damage(damage_of(holdings, index, section.disk, bad))


def _damaged(holdings: Holdings, entries: Entries) -> Iterable[tuple[Entries, list[int]]]:
    """Runs with damaged blocks, by their order in the journal."""
    for run in adjacent(entries[np.argsort(entries["at"])]):
        _, bad = read_checked(holdings, run)
        if bad:
            yield run, bad


def damage_of(holdings: Holdings, index: Index, disk: str, blocks: Blocks) -> Damage:
    """Which points the damaged blocks of one span make unusable: those up to where all are written anew."""
    with holdings.lock:
        later: Sequence[Index] = [each for each in holdings.spans if each.head.first > index.head.last]
        newest = holdings.heads[-1].last
    left, until = blocks, None
    for each in later:
        changes = each.changes(disk)
        left = left[~covered(left, changes.zeros) & ~np.isin(left, changes.entries["block"])]
        if not len(left):
            until = each.head.last
            break
    return Damage(
        first=index.head.first,
        found=newest,
        until=until,
        reason=f"{len(blocks)} blocks of disk {disk} that the receiver's cycle {index.head.last} brought "
        "are not what arrived",
        disks=(disk,),
    )
