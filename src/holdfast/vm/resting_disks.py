"""The disks of a VM that does not run, opened as its own user to be read from outside, or to get maps."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from holdfast.machine.resting_disks import RestingDisk, RestingDisks
from holdfast.vm.records import VmRecord
from holdfast.vm.rooms import Rooms


class RestingVms:
    """Reads VMs whose owner was asked for that (`rest.Rest.while_at_rest`)."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def socket(self, record: VmRecord, tag: str) -> Path:
        """Where a VM's disks are shown to who reads them."""
        return self._rooms.state.runtime / f"r-{record.id[:8]}-{tag}.sock"

    @contextlib.asynccontextmanager
    async def opened(
        self, record: VmRecord, disks: Iterable[str], tag: str, shown: Path | None = None
    ) -> AsyncIterator[tuple[RestingDisks, dict[str, int], dict[str, tuple[str, ...]]]]:
        """Some disks of a VM: they, the size of each in bytes, and the names of its layers, top first.

        Args:
            tag: of who reads; each has a process of its own.
            shown: where they are to be read; None: top layers are opened for writing instead.

        Raises what opening disks raises.
        """
        rooms, wanted, sizes, chains = self._rooms, set(disks), {}, {}
        identity = rooms.identities.of(record.number)
        socket = rooms.state.runtime / f"m-{record.id[:8]}-{tag}.sock"
        log = rooms.state.vm(record.name) / "replica.log"
        async with rooms.storage.resting(socket, identity, log, f"replica:{record.id}", shown) as resting:
            for disk in record.spec.disks:
                if disk.id not in wanted:
                    continue
                await rooms.volumes.grant(record.name, disk, identity)
                layers = rooms.volumes.chain(record.name, disk)
                given = RestingDisk(layers, await rooms.volumes.secrets(record.name, disk))
                sizes[disk.id] = await resting.open(given, writable=shown is None)
                chains[disk.id] = tuple(layer.name for layer in layers)
            yield resting, sizes, chains
