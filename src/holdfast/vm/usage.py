"""Who uses what: the answers that other rooms need before they let something be deleted."""

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from holdfast.catalog.tables import OperationRow, VmRow
from holdfast.spec.vm import Disk, KernelBoot, VmSpec
from holdfast.vm.checkpoint_records import tree_of
from holdfast.vm.records import VmRecords, to_record


class VmUsage:
    """Fits `network.switches.SwitchUsage`, `storage.images.ImageUse` and `storage.pools.book.PoolUse`."""

    def __init__(self, records: VmRecords) -> None:
        self._records = records

    async def vms_on(self, switch: str) -> Sequence[str]:
        """Names of the VMs with a NIC on a switch, running or not."""
        return [
            record.name
            for record in await self._records.all()
            if any(nic.switch and nic.switch.lower() == switch.lower() for nic in record.spec.nics)
        ]

    def vms_using(self, session: Session, digest: str) -> Sequence[str]:
        """Names of the VMs whose disks, drives or kernel are an image, or are being copied from it.

        Looks in the caller's transaction: what it finds holds until that ends.
        """
        rows = session.scalars(select(VmRow).order_by(VmRow.number))
        return [row.name for row in rows if digest in _needed(session, row)]

    def disks_in(self, session: Session, pool: str | None) -> Sequence[tuple[str, Disk]]:
        """VM's name and disk, for each disk that a pool holds; None: in the VMs' own folders.

        A disk of a machine under way or of a checkpoint counts where the next start will have it elsewhere
        or not at all.
        """
        found: list[tuple[str, Disk]] = []
        for row in session.scalars(select(VmRow).order_by(VmRow.number)):
            record = to_record(row)
            running = (record.running_spec,) if record.running_spec else ()
            specs = (*tree_of(session, row.id).specs(), *running, record.spec)
            disks = {(disk.id, disk.pool): disk for spec in specs for disk in spec.disks}
            found += [(row.name, disk) for disk in disks.values() if _same(disk.pool, pool)]
        return found


def pools_of(*specs: VmSpec | None) -> set[str]:
    """Names of the pools that VMs of these specifications need."""
    return {disk.pool for spec in specs if spec for disk in spec.disks if disk.pool is not None}


def _same(pool: str | None, other: str | None) -> bool:
    return (pool or "").lower() == (other or "").lower()


def images_of(spec: VmSpec, full_copies: Mapping[str, str] | None = None) -> set[str]:
    """Digests of what a VM cannot be without; `full_copies`: what its disks are being copied from."""
    found = {disk.image for disk in spec.disks} | {drive.image for drive in spec.cd_drives}
    if isinstance(spec.boot, KernelBoot):
        found |= {spec.boot.kernel, spec.boot.initrd}
    return {digest for digest in found if digest is not None} | set((full_copies or {}).values())


def _needed(session: Session, row: VmRow) -> set[str]:
    record = to_record(row)
    kept = set[str]().union(*(images_of(spec) for spec in tree_of(session, row.id).specs()))
    operation = session.get(OperationRow, row.operation) if row.operation else None
    found = images_of(record.spec, operation.params.get("full_copies") if operation else None)
    return found | kept | (images_of(record.running_spec) if record.running_spec else set())
