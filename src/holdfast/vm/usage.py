"""Who uses what: the answers that other rooms need before they let something be deleted."""

from collections.abc import Sequence

from holdfast.spec.vm import KernelBoot, VmSpec
from holdfast.vm.records import VmRecords


class VmUsage:
    """Fits `network.switches.SwitchUsage` and `storage.images.ImageUse`."""

    def __init__(self, records: VmRecords) -> None:
        self._records = records

    async def vms_on(self, switch: str) -> Sequence[str]:
        """Names of the VMs with a NIC on a switch, running or not."""
        return [
            record.name
            for record in await self._records.all()
            if any(nic.switch and nic.switch.lower() == switch.lower() for nic in record.spec.nics)
        ]

    async def vms_using(self, digest: str) -> Sequence[str]:
        """Names of the VMs whose disks, drives or kernel are an image."""
        return [record.name for record in await self._records.all() if digest in _digests(record.spec)]


def _digests(spec: VmSpec) -> set[str | None]:
    found: set[str | None] = {disk.image for disk in spec.disks} | {drive.image for drive in spec.cd_drives}
    if isinstance(spec.boot, KernelBoot):
        found |= {spec.boot.kernel, spec.boot.initrd}
    return found
