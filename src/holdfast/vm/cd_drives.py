"""The disc in a VM's first CD drive while it runs; the drive itself, where there is none yet.

A drive is recorded before it is plugged, as every device (`device_settling`).
"""

import asyncio
from pathlib import Path

from holdfast.catalog.tables import VmRow
from holdfast.machine.running import RunningMachine
from holdfast.spec.attachment import CdAttachment
from holdfast.spec.vm import VmSpec
from holdfast.vm.device_settling import set_running, settle_devices
from holdfast.vm.owner import VmOwner
from holdfast.vm.records import set_spec
from holdfast.vm.rooms import Rooms


async def change_disc(rooms: Rooms, owner: VmOwner, wanted: VmSpec, disc: Path | None) -> None:
    """Bring the first drive of a machine that runs to what `wanted` says. In the owner's task.

    `disc` is the file of its image. Raises QmpRefused; machine and record are then as before.
    """
    machine, running = owner.machine, owner.record.running_spec
    if machine is None or running is None:
        return
    drive = wanted.cd_drives[0]
    others = tuple(each for each in running.cd_drives if each.id != drive.id)

    def both(row: VmRow) -> None:
        set_spec(row, VmSpec.model_validate(row.spec).model_copy(update={"cd_drives": wanted.cd_drives}))
        set_running(row, cd_drives=(drive, *others))

    if len(others) < len(running.cd_drives):
        await machine.cds.set_medium(drive.id, disc)
        await owner.change(both)
        return
    before = owner.record.spec
    await owner.change(both)
    try:
        await machine.cds.add(CdAttachment(id=drive.id, path=disc))
    except BaseException:
        await asyncio.shield(_take_back(rooms, owner, machine, before))
        raise


async def _take_back(rooms: Rooms, owner: VmOwner, machine: RunningMachine, before: VmSpec) -> None:
    await owner.change(lambda row: set_spec(row, before))
    owner.record = await settle_devices(rooms, owner.record, machine)
