"""Cycles of a VM that does not run: its disks are read as they lie there, by a qemu-storage-daemon.

Nothing changes them meanwhile, so a cycle is all of them at one instant. Where the last machine carried its
maps of changes over, only those are sent; else both sides compare. Once all of it is over there, the disks
get new maps, empty ones: so the next start needs no comparison either.
"""

import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from holdfast.machine.disk_snapshot import export_of
from holdfast.machine.resting_disks import RestingDisks
from holdfast.replication.capture import Captured, CapturedDisk, Carried, carried_by, map_name
from holdfast.replication.wire import Standing
from holdfast.spec.vm import VmSpec
from holdfast.vm.records import VmRecord
from holdfast.vm.resting_disks import RestingVms


def digest_of(spec: VmSpec, started: datetime | None, exclude: Sequence[str]) -> str:
    """Another one after everything by which the disks of a VM that is off can have changed."""
    said = f"{spec.model_dump_json()}\n{started}\n{sorted(exclude)}"
    return hashlib.sha256(said.encode()).hexdigest()


class RestingCapture:
    """The cycles of one replication. What it is given is read while the VM is at rest."""

    def __init__(self, vms: RestingVms, tag: str) -> None:
        self._vms = vms
        self._tag = tag

    @contextlib.asynccontextmanager
    async def captured(
        self, record: VmRecord, cycle: int, disks: Sequence[str], held: Standing, carried: Carried | None
    ) -> AsyncIterator[Captured]:
        """All `disks`, to be read until the end of the context, which does not wait for a reader.

        Raises what opening disks raises.
        """
        socket = self._vms.socket(record, self._tag)
        try:
            async with self._vms.opened(record, disks, self._tag, socket) as (resting, sizes, chains):
                known = await self._known(resting, chains, held, carried)
                captured = []
                for disk in disks:
                    since, changes = known.get(disk), None
                    if since is not None and carried is not None:
                        changes = (map_name(self._tag, since, carried.token), map_name(self._tag, since))
                    await resting.show(disk, chains[disk][0], self._tag, changes)
                    captured.append(
                        CapturedDisk(
                            id=disk,
                            size=sizes[disk],
                            export=export_of(self._tag, disk),
                            since=since,
                            bitmap=changes and changes[1],
                        )
                    )
                yield Captured(cycle=cycle, taken=time.time(), socket=socket, disks=tuple(captured))
        finally:
            socket.unlink(missing_ok=True)

    async def _known(
        self,
        resting: RestingDisks,
        chains: dict[str, tuple[str, ...]],
        held: Standing,
        carried: Carried | None,
    ) -> dict[str, int]:
        """Of disks whose changes are known the cycle since which they are."""
        if carried is None or held.compare:
            return {}
        maps, there = await resting.carried(), {each.id for each in held.disks}
        found = {}
        for disk, since in carried.since.items():
            chain = chains.get(disk)
            if chain is None or chain != carried.chains.get(disk) or disk not in there or since > held.cycle:
                continue
            each = maps.get(chain[0], {}).get(map_name(self._tag, since, carried.token))
            if each is not None and each.whole:
                found[disk] = since
        return found

    async def plant(self, record: VmRecord, disks: Sequence[str], cycle: int) -> Carried:
        """Maps of what changes from now on, for the next machine; the receiver holds this cycle.

        A disk whose top layer is no qcow2 can have none. Raises what opening disks raises: somebody else may
        read them.
        """
        token = secrets.token_hex(8)
        async with self._vms.opened(record, disks, self._tag) as (resting, _, chains):
            tops = {chain[0]: disk for disk, chain in chains.items()}
            stale = {
                top: [name for name in maps if carried_by(self._tag, name)]
                for top, maps in (await resting.carried()).items()
            }
            planted = await resting.plant(map_name(self._tag, cycle, token), list(tops), stale)
        able = [tops[top] for top in planted]
        return Carried(
            token=token, since=dict.fromkeys(able, cycle), chains={disk: chains[disk] for disk in able}
        )
