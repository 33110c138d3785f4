"""Where the disks of an import go, and whether there is room for them. Pure.

Room is judged by pool. `None` is the VM's own folder, where disks lie that no pool was named for, and where
anything else of the VM does too.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.spec.appliance import Finding, PlannedDisk, PoolRoom
from holdfast.spec.pool import LOCAL
from holdfast.spec.units import MIB, format_size
from holdfast.storage.appliances.claims import most_held
from holdfast.storage.appliances.reading import error, info, warning

_OVERHEAD = 64 * MIB
"""Room that a VM needs beside its disks' data: variable store, vTPM, logs, first writes."""
_RESERVE = 512 * MIB
"""Bytes of the file system that an import leaves to others."""
_EXPANSION = 3
"""Times its size that a compressed disk usually becomes, where the source does not say."""
_MOST_EXPANSION = 1000
"""Times its file's size that a disk larger than all free space may show; even an empty one has tables."""
_ALL = "*"


@dataclass(frozen=True)
class PoolFacts:
    name: str
    free: int | None
    """Bytes; None where it does not tell."""
    problem: str = ""
    """Why it cannot be used now."""


@dataclass
class PoolChoice:
    """Which pool each disk goes to; what cannot be is a finding."""

    wanted: Mapping[str, str]
    """Id of a planned disk, or of the source's, to a pool; `*` is for all others."""
    pools: Mapping[str, PoolFacts]
    """By their names in lower case."""
    findings: list[Finding] = field(default_factory=list)

    def check(self, disks: Collection[str]) -> None:
        """`disks`: every id by which one may be named."""
        for disk, named in self.wanted.items():
            facts = self.pools.get(named.lower())
            if disk != _ALL and disk not in disks:
                self.findings.append(error("disk-not-in-source", f"the source has no disk {disk[:64]!r}"))
            if facts is None:
                text = f"there is no pool {named[:64]!r} (`holdfast pool list` shows them)"
                self.findings.append(error("pool-not-found", text))
            elif facts.problem:
                text = f"the pool {facts.name!r} cannot be used now: {facts.problem}"
                self.findings.append(error("pool-vanished", text))

    def of(self, *ids: str) -> str | None:
        """For a disk of these ids."""
        named = next((self.wanted[each] for each in (*ids, _ALL) if each in self.wanted), None)
        facts = self.pools.get(named.lower()) if named else None
        return facts.name if facts and facts.name != LOCAL else None


def room_needed(disks: Iterable[PlannedDisk], populated: Mapping[str, int | None]) -> dict[str | None, int]:
    """Bytes by pool. `populated`: bytes of data in a disk, by the source's id, where it says so."""
    total: dict[str | None, int] = {None: _OVERHEAD}
    for disk in disks:
        if not disk.file_size:
            continue
        size = disk.size or disk.file_size
        taken = disk.data if disk.data is not None else _guess(disk, populated.get(disk.source))
        total[disk.pool] = total.get(disk.pool, 0) + min(taken, size)
        if disk.gzip:
            total[None] += size
    return total


def _guess(disk: PlannedDisk, populated: int | None) -> int:
    packed = disk.gzip or disk.format in ("vmdk", "qcow2")
    return max(populated or disk.file_size * (_EXPANSION if packed else 1), disk.file_size)


def room_of(
    needed: Mapping[str | None, int], free: int, pools: Mapping[str, PoolFacts]
) -> tuple[PoolRoom, ...]:
    """`free`: bytes where VMs lie."""
    return tuple(
        PoolRoom(
            pool=pool or LOCAL, needed=bytes_, free=pools[pool.lower()].free if pool is not None else free
        )
        for pool, bytes_ in needed.items()
    )


def judge_room(disks: Sequence[PlannedDisk], rooms: Iterable[PoolRoom]) -> list[Finding]:
    """What stands in the way, or is to be known. Disks take room as they are written to, so they may grow."""
    found = []
    for disk in disks:
        if disk.gzip:
            found.append(
                info(
                    "gzip",
                    f"disk {disk.source!r} is compressed as a whole: it is unpacked first, which takes room",
                )
            )
    for room in rooms:
        here = [disk for disk in disks if (disk.pool or LOCAL) == room.pool]
        found += [each for disk in here if (each := _absurd(disk, room.free))]
        if room.free is None:
            continue
        where = "" if room.pool == LOCAL else f" in the pool {room.pool!r}"
        total, reserve = sum(disk.size for disk in here), _RESERVE if room.pool == LOCAL else 0
        if total > room.free:
            found.append(
                warning(
                    "space-overcommitted",
                    f"the disks{where} can grow to {format_size(total)},"
                    f" and {format_size(room.free)} are free",
                )
            )
        if room.needed + reserve > room.free:
            found.append(
                error(
                    "no-space",
                    f"about {format_size(room.needed)} are needed{where},"
                    f" and {format_size(max(room.free - reserve, 0))} can be had",
                )
            )
    return found


def _absurd(disk: PlannedDisk, free: int | None) -> Finding | None:
    """What is wrong with a disk that claims more than its file can honestly hold."""
    if disk.file is None:
        return None
    file = f"disk {disk.source!r} has a file of {format_size(disk.file_size)}"
    if disk.data is not None and disk.data > most_held(disk.file_size):
        return error(
            "disk-expands-absurdly",
            f"{file}, whose tables list {format_size(disk.data)} of data, more than any real one packs; if"
            " you trust it, convert it where it was made (`qemu-img convert`)",
        )
    if free is not None and disk.size > max(disk.file_size * _MOST_EXPANSION, free):
        return error(
            "disk-expands-absurdly",
            f"{file} and shows {format_size(disk.size)}, more than could be held here: make it smaller"
            " where it is, or bring the other disks and add an empty one afterwards",
        )
    return None
