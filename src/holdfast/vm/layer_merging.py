"""Layers that no checkpoint needs become one with their neighbours, whether the VM runs or not.

    copy what is less, up or down ─▶ record: one layer less in every specification ─▶ let go of it, remove it

Nothing is lost at any moment. While it is copied, and after it was, the chain that is recorded shows the
same content as the shorter one, until the guest writes on. It writes on beside the record only where the
layer that it writes to was copied down: there the guest stands still from the last copied byte until the
shorter chain is recorded. Where the daemon died in between, `Merging.settle` finds in the machine which
layers it has, and records those.
"""

import asyncio
import contextlib

import structlog
from sqlalchemy.orm import object_session

from holdfast.catalog.tables import VmRow
from holdfast.host.files import remove_tree
from holdfast.machine.disk_layers import DiskLayers, root_of
from holdfast.machine.running import RunningMachine
from holdfast.operations.procedure import Job
from holdfast.qmp.errors import QmpLost, QmpRefused
from holdfast.spec.attachment import Layer
from holdfast.spec.disk_requests import own_layers
from holdfast.spec.errors import HoldfastError
from holdfast.spec.units import format_size
from holdfast.spec.vm import VmSpec
from holdfast.vm import checkpoint_records, layers
from holdfast.vm.checkpoint_files import FOLDER
from holdfast.vm.disk_settling import specs_of
from holdfast.vm.layers import Direction, Merge
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import Change, change_both, own_specs
from holdfast.vm.rooms import Rooms

log = structlog.get_logger(__name__)

_END_SECONDS = 5.0  # for the end of a process to be noticed whose monitor was lost


def change_specs(row: VmRow, change: Change, *, checkpoints: bool) -> None:
    """Change what a VM's row, and where asked its checkpoints, say of layers, in the row's transaction."""
    change_both(row, change)
    session = object_session(row)
    if checkpoints and session is not None:
        checkpoint_records.change_specs(session, row.id, change)


class Merging:
    """Merges the layers of VMs, and removes what no specification names."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def specs(self, owner: VmOwner) -> list[VmSpec]:
        """Every specification that names layers of a VM."""
        return await specs_of(self._rooms, owner.record)

    async def all_that_can(self, owner: VmOwner, job: Job) -> None:
        """Settle, merge until nothing can be, and remove what is left over. Safe to run again.

        Raises:
            BlockJobFailed, NoSpace, ...: a merge failed; nothing is lost, and what was merged stays so.
        """
        with contextlib.suppress(QmpLost):  # it has ended, and what was under way with it
            await owner.request(lambda: self.settle(owner, job))
        wanted = len(layers.mergeable(await self.specs(owner)))
        while steps := layers.mergeable(specs := await self.specs(owner)):
            done = max(0, wanted - len(steps))
            work = _Work(self._rooms, owner, job, steps[0], specs, (done, wanted))
            machine = owner.machine
            try:
                await work.run()
            except HoldfastError:
                if machine is None or not await _ended(machine):
                    raise
                # It was killed or died: the rest is done without it.
                await owner.at_rest()
        await owner.request(lambda: self.tidy(owner))

    async def settle(self, owner: VmOwner, job: Job) -> None:
        """After a crash: end what was under way, and let the record say which layers the machine has.

        Runs in the owner's task.
        """
        machine = owner.machine
        if machine is None:
            return
        disks = (owner.record.running_spec or owner.record.spec).disks
        for disk in disks:
            await machine.jobs.cancel(job_id(disk.id))
        connected = await machine.layers.chains()
        for disk in disks:
            has, told = connected.get(disk.id, ()), own_layers(disk)
            if set(has).isdisjoint(told):
                continue  # not this disk's layers: nothing can be said of those
            # A layer that the machine went on without was merged, and the record not told.
            for layer in told:
                if layer not in has:
                    await forget(owner, disk.id, layer)
        await self._fix(owner, machine)
        if job.notes.get("merge_stopped") and await machine.status() == "paused":
            await machine.cont()

    async def _fix(self, owner: VmOwner, machine: RunningMachine) -> None:
        """Layers that are only read, and that a merge that was cut off left open for writing."""
        writable = await machine.layers.writable()
        for disk in (owner.record.running_spec or owner.record.spec).disks:
            chain = _Chain(self._rooms.volumes.chain(owner.record.name, disk))
            for layer in own_layers(disk)[1:]:
                if layer in writable:
                    await machine.layers.make_fixed(*chain.of(layer))

    async def tidy(self, owner: VmOwner) -> None:
        """Close and remove every layer and folder that nothing names. Runs in the owner's task."""
        tree = await self._rooms.checkpoints.tree(owner.record.id)
        specs = [*own_specs(owner.record), *tree.specs()]
        kept = frozenset[str]().union(*layers.named(specs).values())
        if owner.machine is not None:
            with contextlib.suppress(QmpLost):  # it has ended, and they are closed
                await _close_unused(owner.machine, kept)
        name, folders = owner.record.name, {each.name for each in tree.checkpoints}
        for disk in {each.pool: each for spec in specs for each in spec.disks}.values():
            found = await self._rooms.volumes.layers_found(name, disk.pool)
            await self._rooms.volumes.delete_layers(name, disk, found - kept)
        await asyncio.to_thread(self._remove_folders, name, folders)

    def _remove_folders(self, name: str, folders: set[str]) -> None:
        folder = self._rooms.state.vm(name) / FOLDER
        for entry in [*folder.iterdir()] if folder.is_dir() else []:
            if entry.name not in folders:
                remove_tree(entry)


def job_id(disk: str) -> str:
    return f"merge-{disk}"


async def forget(owner: VmOwner, disk: str, layer: str) -> None:
    """Record that a layer became one with its neighbour. Runs in the owner's task."""
    await owner.change(
        lambda row: change_specs(row, lambda spec: layers.without(spec, disk, layer), checkpoints=True)
    )


async def _ended(machine: RunningMachine) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(machine.ended.wait(), _END_SECONDS)
    return machine.ended.is_set()


async def _close_unused(machine: RunningMachine, kept: frozenset[str]) -> None:
    """Layers that were merged, or prepared and not switched to."""
    used = kept.union(*(await machine.layers.chains()).values())
    opened = {node.removeprefix("d-") for node in await machine.layers.nodes() if node.startswith("d-disk")}
    unused = opened - used
    for _ in range(len(unused)):  # one that stands on another keeps that open
        for layer in unused:
            with contextlib.suppress(QmpRefused):
                await machine.layers.drop(layer)


class _Work:
    """One merge."""

    def __init__(
        self,
        rooms: Rooms,
        owner: VmOwner,
        job: Job,
        merge: Merge,
        specs: list[VmSpec],
        place: tuple[int, int],
    ) -> None:
        """`place`: how many merges are done, and how many there are."""
        self._rooms = rooms
        self._owner = owner
        self._job = job
        self._merge = merge
        self._specs = specs
        self._place = place
        self._id = job_id(merge.disk)

    async def run(self) -> None:
        merge, machine = self._merge, self._owner.machine
        direction = await self._cheaper()
        log.info("merging layers", vm=self._owner.record.name, lower=merge.lower, upper=merge.upper)
        if machine is not None and merge.lower in (await machine.layers.chains()).get(merge.disk, ()):
            await self._live(machine, direction)
        else:
            await self._offline(direction)
        gone = layers.gone(merge, direction)

        async def remove() -> None:
            if self._owner.machine is not None:
                await self._owner.machine.layers.drop(gone)
            disk = layers.chain_to(self._specs, merge.disk, gone)
            await self._rooms.volumes.delete(
                self._owner.record.name, disk.model_copy(update={"volume": gone, "below": ()})
            )

        await self._owner.request(remove)

    async def _cheaper(self) -> Direction:
        name, merge = self._owner.record.name, self._merge
        disk = layers.chain_to(self._specs, merge.disk, merge.upper)
        upper, lower = [
            await self._rooms.volumes.layer_size(name, disk, each) for each in (merge.upper, merge.lower)
        ]
        return Direction.DOWN if upper < lower else Direction.UP

    async def _live(self, machine: RunningMachine, direction: Direction) -> None:
        merge, owner, disks = self._merge, self._owner, machine.layers
        running = owner.record.running_spec or owner.record.spec
        disk = next(each for each in running.disks if each.id == merge.disk)
        chain = _Chain(self._rooms.volumes.chain(owner.record.name, disk))
        if direction is Direction.UP:
            await self._up(disks, chain)
            await owner.request(lambda: forget(owner, merge.disk, merge.lower))
            return
        await disks.make_writable(*chain.of(merge.lower))
        overlay = chain.above(merge.upper)
        if overlay is not None and overlay != chain.top:
            await disks.make_writable(*chain.of(overlay))  # its header is written
        if await disks.commit(self._id, root_of(merge.disk), merge.upper, merge.lower, self._told):
            try:
                await owner.request(lambda: self._move_over(machine))
            except BaseException:
                with contextlib.suppress(HoldfastError, TimeoutError):
                    await asyncio.shield(machine.jobs.cancel(self._id))
                raise
            await disks.make_writable(*chain.of(merge.lower))
            return
        await disks.make_fixed(*chain.of(merge.lower))
        if overlay is not None and overlay != chain.top:
            await disks.make_fixed(chain.of(overlay)[0], merge.lower)
        await owner.request(lambda: forget(owner, merge.disk, merge.upper))

    async def _move_over(self, machine: RunningMachine) -> None:
        """The guest writes to the lower layer from now on; it stands still until that is recorded."""
        runs = await machine.status() == "running"
        self._job.notes["merge_stopped"] = runs
        await self._job.keep()

        async def work() -> None:
            await machine.layers.finish(self._id)
            await forget(self._owner, self._merge.disk, self._merge.upper)

        await machine.instant.of_work(work, runs=runs)
        self._job.notes["merge_stopped"] = False

    async def _up(self, disks: DiskLayers, chain: "_Chain") -> None:
        merge = self._merge
        upper, base = chain.of(merge.upper)[0], chain.of(merge.lower)[1]
        await disks.make_writable(upper, merge.lower)
        await disks.stream(self._id, merge.upper, base, self._told)
        settle = disks.make_writable if merge.upper == chain.top else disks.make_fixed
        await settle(upper, base)

    async def _offline(self, direction: Direction) -> None:
        owner, rooms, merge = self._owner, self._rooms, self._merge
        record = owner.record
        disk = layers.chain_to(self._specs, merge.disk, merge.upper)
        chain = _Chain(rooms.volumes.chain(record.name, disk))
        async with rooms.storage.layers(
            rooms.state.runtime / f"merge-{record.id[:8]}.sock",
            rooms.identities.of(record.number),
            rooms.state.vm(record.name) / "qemu.log",
            f"operation:{self._job.id}",
        ) as disks:
            await disks.add_chain(chain.layers)
            if direction is Direction.UP:
                await self._up(disks, chain)
            else:
                await disks.make_writable(*chain.of(merge.lower))
                root = f"d-{merge.upper}"
                if await disks.commit(self._id, root, merge.upper, merge.lower, self._told):
                    await disks.finish(self._id)
                await disks.make_fixed(*chain.of(merge.lower))
        await owner.request(lambda: forget(owner, merge.disk, layers.gone(merge, direction)))

    def _told(self, done: int, total: int) -> None:
        number, wanted = self._place
        part = done / total if total else 0.0
        text = f"{self._merge.disk}: {format_size(done)} of {format_size(total)}"
        self._job.progress((number + part) / max(wanted, 1), text)


class _Chain:
    """A disk's layers, top first, and what stands on what."""

    def __init__(self, found: tuple[Layer, ...]) -> None:
        self.layers = found
        self._names = [layer.name for layer in found]

    @property
    def top(self) -> str:
        return self._names[0]

    def of(self, name: str) -> tuple[Layer, str | None]:
        """A layer, and the name of the one below it."""
        at = self._names.index(name)
        below = self._names[at + 1] if at + 1 < len(self._names) else None
        return self.layers[at], below

    def above(self, name: str) -> str | None:
        at = self._names.index(name)
        return self._names[at - 1] if at else None
