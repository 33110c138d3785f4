"""A disk moved to another pool, with all its layers, while the VM runs and while it does not.

    copy what nobody writes to ─▶ mirror the top, if the VM runs ─▶ switch over, record ─▶ delete the old

The copies have names of their own. Until the switch the old layers hold, and an undo drops the new ones.
At the switch the guest stands still until it is recorded: where QEMU or the daemon ends in between, both
tops hold the same, so either is right; a daemon that comes back asks QEMU which one it has.
"""

from holdfast.machine.running import RunningMachine
from holdfast.operations.procedure import Job, Procedure
from holdfast.spec.attachment import DiskAttachment
from holdfast.spec.errors import Conflict
from holdfast.spec.units import format_size
from holdfast.spec.vm import Disk, VmSpec, VmState
from holdfast.vm import layers
from holdfast.vm.disk_attachments import open_disk
from holdfast.vm.disk_settling import specs_of
from holdfast.vm.disk_specs import disk_of, named
from holdfast.vm.layer_merging import change_specs
from holdfast.vm.lifecycle import Find, RoomsPhase
from holdfast.vm.owner import VmOwner
from holdfast.vm.rooms import Rooms

KIND = "disk.move"
_STOPPED = "move_stopped"


class DiskLayersChanged(Conflict):
    id = "disk-layers-changed"


class VmEndedMeanwhile(Conflict):
    id = "vm-ended-meanwhile"


def new_names(specs: list[VmSpec], disk_id: str) -> dict[str, str]:
    """A name for the copy of each layer of a disk, by the layer's own."""
    taken = set(layers.named(specs)[disk_id])
    names: dict[str, str] = {}
    for layer in sorted(taken):
        names[layer] = layers.next_layer(disk_id, taken | set(names.values()))
    return names


class _Moving(RoomsPhase):
    """`params`: `disk_id`, `pool` (None: the VM's own folder) and `names` of the copies by layer."""

    def _new(self, job: Job, disk: Disk) -> Disk:
        spec = layers.carried(
            VmSpec(cpus=1, memory=1 << 30, disks=(disk,)), disk.id, job.params["names"], job.params["pool"]
        )
        return spec.disks[0]

    def _moved(self, job: Job, disk: Disk) -> bool:
        return disk.volume in job.params["names"].values()

    def _open(self, owner: VmOwner, disk: Disk) -> DiskAttachment:
        return open_disk(self._rooms, owner.record.name, disk).attachment

    async def _drop_old(self, job: Job, owner: VmOwner) -> None:
        old = Disk.model_validate(job.params["disk"])
        running = self._running(owner, job)
        if running is not None:
            await running[0].moves.close(self._open(owner, old))
        await self._rooms.volumes.delete_layers(owner.record.name, old, job.params["names"])

    @staticmethod
    def _running(owner: VmOwner, job: Job) -> tuple[RunningMachine, Disk] | None:
        disk = disk_of(owner.record.running_spec, job.params["disk_id"])
        return (owner.machine, disk) if owner.machine is not None and disk is not None else None


class CopyLayers(_Moving):
    """All layers; of a VM that runs all but the one that it writes to."""

    title = "copy the layers"
    weight = 5.0

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        if self._moved(job, named(owner.record, job.params["disk_id"])):
            return
        specs = await specs_of(self._rooms, owner.record)
        if set(layers.named(specs)[job.params["disk_id"]]) != set(job.params["names"]):
            raise DiskLayersChanged(
                f"the layers of {job.params['disk_id']} were changed meanwhile",
                value=job.params["disk_id"],
                cure="Move it once more.",
            )
        running = self._running(owner, job)
        job.notes["live"] = running is not None
        written = running[1].volume if running else None
        wanted = [layer for layer in job.params["names"] if layer != written]
        for number, layer in enumerate(wanted):
            await self._copy(job, owner, specs, layer, (number, len(wanted)))
        if running is not None and "top" not in job.notes:
            await self._make_top(job, owner, running[1])
            job.notes["top"] = True

    async def _copy(
        self, job: Job, owner: VmOwner, specs: list[VmSpec], layer: str, place: tuple[int, int]
    ) -> None:
        number, count = place
        disk = layers.chain_to(specs, job.params["disk_id"], layer)
        await self._rooms.volumes.copy_layer(
            owner.record.name,
            disk,
            layer,
            job.params["pool"],
            name=job.params["names"][layer],
            identity=self._rooms.identities.of(owner.record.number),
            operation=job.id,
            progress=lambda part, text: job.progress((number + part) / count, text),
        )

    async def _make_top(self, job: Job, owner: VmOwner, disk: Disk) -> None:
        """Empty, over the copies; what the guest writes to is mirrored into it."""
        name, new = owner.record.name, self._new(job, disk)
        identity = self._rooms.identities.of(owner.record.number)
        if new.below:
            below = new.model_copy(update={"volume": new.below[0], "below": new.below[1:]})
            await self._rooms.volumes.create_overlay(
                name, below, new.volume, identity=identity, operation=job.id
            )
            return
        await self._rooms.volumes.create(
            name, new, copy_of=None, identity=identity, operation=job.id, progress=lambda *_: None
        )

    async def undo(self, job: Job) -> None:
        owner = await self._owner(job)

        async def drop() -> None:
            disk, names = named(owner.record, job.params["disk_id"]), job.params["names"]
            if self._moved(job, disk):
                await self._drop_old(job, owner)
            else:
                await self._rooms.volumes.delete_layers(
                    owner.record.name, self._new(job, disk), names.values()
                )

        await owner.request(drop)


class MirrorTop(_Moving):
    """Of a VM that runs: from its end on each write goes to both."""

    title = "copy what the guest writes to"
    weight = 5.0

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        running = self._running(owner, job)
        if not job.notes["live"] or (running is not None and self._moved(job, running[1])):
            return
        if running is None:
            raise _ended(owner)
        machine, disk = running
        new = self._open(owner, self._new(job, disk))
        if await machine.moves.top(disk.id) == f"d-{new.layers[0].name}":
            return  # switched over already; the record follows

        def told(done: int, total: int) -> None:
            part = done / total if total else 0.0
            job.progress(part, f"{format_size(done)} of {format_size(total)}")

        await machine.disks.know(await self._rooms.volumes.secrets(owner.record.name, self._new(job, disk)))
        await machine.moves.copy(self._open(owner, disk), new, told)

    async def undo(self, job: Job) -> None:
        owner = await self._owner(job)
        running = self._running(owner, job)
        if running is not None and not self._moved(job, running[1]):
            machine, disk = running
            new = self._open(owner, self._new(job, disk))
            await owner.request(lambda: machine.moves.give_up(new))


class SwitchOver(_Moving):
    title = "switch over to the copies"
    weight = 0.5

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        await owner.request(lambda: self._switch(job, owner))

    async def _switch(self, job: Job, owner: VmOwner) -> None:
        running = self._running(owner, job)
        if running is None:
            if job.notes["live"] and not self._moved(job, named(owner.record, job.params["disk_id"])):
                raise _ended(owner)
            await self._record(job, owner)
            return
        machine, disk = running
        runs = await machine.status() == "running"
        if not self._moved(job, disk):
            if _STOPPED not in job.notes:
                job.notes[_STOPPED] = runs
                await job.keep()
            new = self._open(owner, self._new(job, disk))

            async def work() -> None:
                if await machine.moves.top(disk.id) != f"d-{new.layers[0].name}":
                    await machine.moves.switch(new)
                await self._record(job, owner)

            await machine.instant.of_work(work, runs=runs or bool(job.notes[_STOPPED]))
        elif job.notes.get(_STOPPED) and not runs and owner.record.state is not VmState.FAILED:
            await machine.cont()

    async def _record(self, job: Job, owner: VmOwner) -> None:
        disk_id, names, pool = job.params["disk_id"], job.params["names"], job.params["pool"]
        if self._moved(job, named(owner.record, disk_id)):
            return
        told = {"disk": disk_id, "pool": pool}
        await owner.change(
            lambda row: change_specs(
                row, lambda spec: layers.carried(spec, disk_id, names, pool), checkpoints=True
            ),
            "vm.disk-moved",
            told,
        )


class DropOld(_Moving):
    """From here on nothing is undone."""

    title = "delete the layers that were left"
    weight = 0.5

    async def do(self, job: Job) -> None:
        owner = await self._owner(job)
        await owner.request(lambda: self._drop_old(job, owner))


def _ended(owner: VmOwner) -> VmEndedMeanwhile:
    return VmEndedMeanwhile(
        f"VM {owner.record.name!r} ended while its disk was moved; the disk is where it was",
        value=owner.record.name,
        cure="Move it once more.",
    )


def procedures(rooms: Rooms, find: Find) -> list[Procedure]:
    phases = tuple(each(rooms, find) for each in (CopyLayers, MirrorTop, SwitchOver, DropOld))

    def told(job: Job) -> dict[str, object]:
        return {"vm": job.subject, "disk_id": job.params["disk_id"], "pool": job.params["pool"] or "local"}

    return [Procedure(KIND, phases, told)]
