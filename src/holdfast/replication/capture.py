"""The source's side of a cycle: which blocks changed since the last one, and all disks at one instant.

Each replicated disk has a map of the blocks that were written since the instant of a cycle that the receiver
holds whole. A map may hold more than that, never less, so every way out of a cycle is safe:

    attach     since-T-4                                   records; the receiver holds 4
    begin 5    since-T-4, since-T-5                        both record
               since-T-4                    ▷ snapshot     frozen: this is what cycle 5 sends
    commit     since-T-5                                   the receiver holds 5
    give_up    since-T-4 = since-T-4 + since-T-5           the receiver holds 4; cycle 6 sends all of it

T is the replication's tag: a VM may have several, each with maps, a snapshot and cycles of its own.

Nothing of this is remembered here: the maps and what stands between the nodes are found in QEMU itself, so a
killed daemon's cycle is given up by the next one's `attach`. A machine that ends in good order carries its
maps over to the next one (`carry`). Where a disk has no map (it is new, QEMU was killed, its content was put
back to that of a checkpoint), or one since a cycle that the receiver does not hold, both ends must compare
what they have, or all of it is sent.
"""

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from holdfast.machine.change_maps import ChangeMap, ChangeMaps
from holdfast.machine.disk_snapshot import DiskSnapshot, export_of
from holdfast.spec.errors import Conflict
from holdfast.spec.model import Frozen
from holdfast.spec.replica import Consistency

TAG_DIGITS = 8
_CARRIED = re.compile(r"since-([0-9a-f]{8})-[0-9]{1,19}-[0-9a-f]{16}")


class CycleUnderWay(Conflict):
    """An earlier cycle was neither committed nor given up."""

    id = "replica-cycle-under-way"


class Chains(Protocol):
    """The layers of disks; `DiskLayers` of the machine."""

    async def chains(self) -> dict[str, tuple[str, ...]]: ...


class Machine(Protocol):
    """A QEMU; `RunningMachine`."""

    @property
    def layers(self) -> Chains: ...
    @property
    def change_maps(self) -> ChangeMaps: ...
    @property
    def snapshot(self) -> DiskSnapshot: ...


class Carried(Frozen):
    """That an ended machine's maps are in its disks; to be stored, and given to the next `attach` once."""

    token: str
    since: dict[str, int]
    """By disk."""
    chains: dict[str, tuple[str, ...]]
    """By disk, as they were; a map says nothing about other chains."""


class CapturedDisk(Frozen):
    id: str
    size: int
    """Bytes, as the guest sees it."""
    export: str
    """Name of its NBD export."""
    since: int | None
    """The cycle since which changes are known; None: all of its content may have changed."""
    bitmap: str | None = None
    """Name of the bitmap that the export shows, of what changed since then."""


class Captured(Frozen):
    """All disks at the instant of one cycle."""

    cycle: int
    taken: float
    """Seconds since 1970-01-01 UTC, shortly before the instant."""
    socket: Path
    """Where the exports are served."""
    disks: tuple[CapturedDisk, ...]
    consistency: Consistency = Consistency.CRASH


class Capture:
    """The cycles of one machine for one replication. One caller at a time.

    Args:
        tag: of the replication, as `tag_of` makes it.
        socket: short path at which QEMU serves what it shows.
        scratch: folder for copies of what the guest overwrites during a cycle.
    """

    def __init__(self, machine: Machine, tag: str, socket: Path, scratch: Path) -> None:
        self._machine = machine
        self.tag = tag
        self._maps = machine.change_maps
        self._snapshot = machine.snapshot
        self._socket = socket
        self._scratch = scratch

    async def attach(self, carried: Carried | None) -> dict[str, int | None]:
        """Find out since which cycle changes are known of each of the machine's disks.

        Safe at any time: also where a cycle was cut off, and where the machine has run for long.

        Args:
            carried: what the machine before this one left; it must be forgotten before this is called again.
        """
        await self.give_up()
        await self._take_over(carried)
        await self._snapshot.serve(self._socket)
        return await self.since()

    async def since(self) -> dict[str, int | None]:
        """Of each disk the cycle since which its changes are known."""
        return {disk: since for disk, (since, _) in (await self.known()).items()}

    async def pending(self) -> dict[str, int]:
        """Of each disk with a map the bytes that would be sent if a cycle began now."""
        return {disk: pending for disk, (_, pending) in (await self.known()).items()}

    async def known(self) -> dict[str, tuple[int | None, int]]:
        """Of each disk both, asked of QEMU once: many VMs have nothing to send and are asked all the time."""
        found = await self._maps.of_disks()
        return {
            disk: (
                min(self._cycles(maps), default=None),
                sum(maps[self._name(each)].changed for each in self._cycles(maps)),
            )
            for disk, maps in found.items()
        }

    async def begin(
        self, cycle: int, disks: Sequence[str], held: int, held_disks: Collection[str] | None = None
    ) -> Captured:
        """Capture disks at one instant, which the guest does not notice.

        Args:
            cycle: its number, higher than any before, whether they were committed or not.
            held: the last cycle that the receiver holds whole, as it says; 0: none.
            held_disks: those that it holds by that cycle; None: all.

        Raises:
            CycleUnderWay
            DisksChanging, QmpRefused, OSError: nothing has changed.
        """
        known = await self._maps.of_disks()
        before = {disk: self._cycles(known[disk]) for disk in disks}
        if held >= cycle or any(len(each) > 1 or max(each, default=0) >= cycle for each in before.values()):
            raise CycleUnderWay(
                f"a cycle before {cycle} is not over yet", value=cycle, cure="Give it up first."
            )
        # Of a disk's first cycle that was given up, or one that was left out for a while: what was there
        # before is not held.
        new = {disk for disk, each in before.items() if max(each, default=0) > held}
        new |= set() if held_disks is None else known.keys() - set(held_disks)
        await self._maps.drop({disk: map(self._name, self._cycles(known[disk])) for disk in new})
        since = {disk: each[0] if each and disk not in new else None for disk, each in before.items()}
        try:
            await self._maps.record(self._name(cycle), disks)
            sizes, taken = await self._snapshot.take(self.tag, disks, self._scratch)
            await self._maps.freeze(
                {disk: self._name(each) for disk, each in since.items() if each is not None}
            )
            captured = tuple(
                CapturedDisk(
                    id=disk,
                    size=sizes[disk],
                    export=export_of(self.tag, disk),
                    since=each,
                    bitmap=None if each is None else self._name(each),
                )
                for disk, each in since.items()
            )
            await self._snapshot.show(self.tag, {each.id: each.bitmap for each in captured})
        except BaseException:
            await self.give_up()
            raise
        return Captured(cycle=cycle, taken=taken, socket=self._socket, disks=captured)

    async def commit(self, cycle: int) -> None:
        """The receiver holds the cycle whole: only what was written since its instant is of interest now.

        May be called again where it was cut off. Raises SnapshotHeld, DisksChanging.
        """
        await self._snapshot.release(self.tag)
        known = await self._maps.of_disks()
        await self._maps.drop(
            {
                disk: [self._name(each) for each in self._cycles(maps) if each < cycle]
                for disk, maps in known.items()
                if self._name(cycle) in maps
            }
        )

    async def give_up(self) -> None:
        """The receiver may not hold the cycle, whatever became of it: its changes are the next one's, too.

        Nothing happens where none is under way. Raises SnapshotHeld, DisksChanging.
        """
        await self._snapshot.release(self.tag)
        back: dict[str, tuple[str, list[str]]] = {}
        for disk, maps in (await self._maps.of_disks()).items():
            cycles = self._cycles(maps)
            if not cycles:
                continue
            oldest = maps[self._name(cycles[0])]
            if len(cycles) > 1 or not oldest.recording:
                back[disk] = (oldest.name, [self._name(each) for each in cycles[1:]])
        await self._maps.take_back(back)

    async def carry(self) -> Carried:
        """Put the maps into the disks' top layers, for the next machine.

        The guest must stand still, and QEMU must be ended in good order next. Layers that are no qcow2 carry
        none.
        """
        await self.give_up()
        chains = await self._machine.layers.chains()
        since = {disk: each for disk, each in (await self.since()).items() if each is not None}
        token = secrets.token_hex(8)
        carriers = await self._maps.carriers()
        since = {disk: each for disk, each in since.items() if chains[disk][0] in carriers}
        await self._maps.carry(
            {
                disk: (self._name(each), chains[disk][0], map_name(self.tag, each, token))
                for disk, each in since.items()
            }
        )
        return Carried(token=token, since=since, chains={disk: chains[disk] for disk in since})

    async def forget(self) -> None:
        """Replication of the VM is over: no maps stay. Raises SnapshotHeld, DisksChanging."""
        await self._snapshot.release(self.tag)
        known = await self._maps.of_disks()
        await self._maps.drop(
            {disk: [self._name(each) for each in self._cycles(maps)] for disk, maps in known.items()}
        )

    async def _take_over(self, carried: Carried | None) -> None:
        """Maps that layers carry record on, on the disks; all others in layers are out of date."""
        kept = await self._maps.of_layers()
        chains = await self._machine.layers.chains()
        tops = {disk: chain[0] for disk, chain in chains.items() if chain}
        if carried is not None:
            already = await self.since()
            wanted = {
                disk: (self._name(since), tops[disk], map_name(self.tag, since, carried.token))
                for disk, since in carried.since.items()
                if chains.get(disk) == carried.chains.get(disk) and already.get(disk) is None
            }
            await self._maps.take_over(
                {disk: each for disk, each in wanted.items() if _usable(kept.get(each[1], {}), each[2])}
            )
        await self._maps.drop_carried(
            {top: [name for name in kept.get(top, {}) if carried_by(self.tag, name)] for top in tops.values()}
        )

    def _name(self, cycle: int) -> str:
        return map_name(self.tag, cycle)

    def _cycles(self, maps: Mapping[str, ChangeMap]) -> list[int]:
        """The cycles since which there are maps, ascending."""
        prefix = map_name(self.tag, "")
        found = (name.removeprefix(prefix) for name in maps if name.startswith(prefix))
        return sorted(int(each) for each in found if each.isdigit())


def _usable(maps: Mapping[str, ChangeMap], name: str) -> bool:
    return name in maps and maps[name].whole and maps[name].recording


def tag_of(replication: str) -> str:
    """From a replication's id, a random UUID: few enough letters for names of nodes (31 at most)."""
    return replication.replace("-", "")[:TAG_DIGITS]


def map_name(tag: str, cycle: int | str, token: str = "") -> str:
    """Of the map of what changed since a cycle; with `token`, of one that a layer carries."""
    return f"since-{tag}-{cycle}" + (f"-{token}" if token else "")


def carried_by(tag: str, name: str) -> bool:
    """Whether a layer's map is one that was left in it for this replication."""
    match = _CARRIED.fullmatch(name)
    return match is not None and match[1] == tag
