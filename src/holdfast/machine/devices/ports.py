"""PCIe root ports: a slot for every device that can come and go, and spare ones for later.

Eight ports share one slot of the board. Network cards come first, so that firmware numbers their
buses first and a card's address in the guest (which Linux makes its name from) does not depend on
how many disks there are.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.machine.devices.quoting import device
from holdfast.spec.errors import InvalidInput

SPARE = 8
_PER_SLOT = 8


class TooManyDevices(InvalidInput):
    id = "too-many-devices"


def numbers(ids: Iterable[str], most: int) -> dict[str, int]:
    """Numbers below `most` by id: the one that the id ends in, else the lowest free one.

    `most` is at least the count of the ids.
    """
    wanted = list(ids)
    taken: dict[str, int] = {}
    for each in wanted:
        match = re.search(r"\d{1,4}$", each, re.ASCII)
        number = int(match[0]) if match else most
        if number < most and number not in taken.values():
            taken[each] = number
    free = iter(sorted(set(range(most)) - set(taken.values())))
    return {each: taken[each] if each in taken else next(free) for each in wanted}


@dataclass(frozen=True)
class PortRange:
    """Ports of one kind; `first_slot` and `slots` are device numbers on pcie.0."""

    prefix: str
    first_slot: int
    slots: int

    @property
    def most(self) -> int:
        return self.slots * _PER_SLOT

    def port(self, number: int) -> str:
        """Id of the bus on which a device sits."""
        return f"{self.prefix}{number}"

    def places(self, ids: Iterable[str]) -> dict[str, int]:
        """Port numbers by device id: the number that the id ends in, else the lowest free one.

        A device so keeps its place when another one is removed.

        Raises:
            TooManyDevices: there are fewer ports than ids.
        """
        wanted = list(ids)
        if len(wanted) > self.most:
            raise TooManyDevices(
                f"{len(wanted)} devices need PCIe ports of their own, and the machine has {self.most}",
                value=len(wanted),
                cure="Use the SCSI bus for disks, or fewer devices.",
            )
        return numbers(wanted, self.most)

    def ports(self, used: Iterable[int]) -> list[str]:
        """All ports up to the last used one, at least `SPARE` more (as far as there are any), whole slots."""
        wanted = max(used, default=-1) + 1 + SPARE
        count = min(-(-wanted // _PER_SLOT) * _PER_SLOT, self.most)
        parts: list[str] = []
        for number in range(count):
            slot, function = divmod(number, _PER_SLOT)
            unique = (self.first_slot + slot) * _PER_SLOT + function
            parts += device(
                "pcie-root-port",
                id=self.port(number),
                bus="pcie.0",
                addr=f"{self.first_slot + slot:#x}.{function}",
                multifunction=True if function == 0 else None,
                chassis=unique,
                slot=unique,
                io_reserve=0,
            )
        return parts


NIC_PORTS = PortRange("nic-port", 0x09, 9)
DISK_PORTS = PortRange("disk-port", 0x12, 13)
