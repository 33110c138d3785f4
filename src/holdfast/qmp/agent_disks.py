"""What a guest sees of its disks, asked of its agent (QEMU, qga/qapi-schema.json, GuestDiskInfo).

All of it is the guest's word: bounded, compared, shown, never acted on.
"""

import re
from dataclasses import dataclass
from typing import Any

from holdfast.qmp.agent import GuestAgent

_MOST = 4096
_LINUX = re.compile(r"/dev/([a-zA-Z0-9._!-]{1,64})")
_SECTOR = 512  # bytes; of /sys/block/*/size whatever the disk's own sectors are


@dataclass(frozen=True)
class GuestDisk:
    name: str
    """As the guest calls it, such as `/dev/vda`."""
    serial: str
    """Empty where the guest does not tell; Linux tells what udev found (ID_SERIAL)."""

    def is_disk(self, disk: str) -> bool:
        """Whether it has the serial number of this disk of ours.

        udev puts that behind a model's name, and the number of an NVMe namespace behind that.
        """
        return re.fullmatch(rf"(.*_)?{re.escape(disk)}(_[0-9]+)?", self.serial) is not None


async def guest_disks(agent: GuestAgent, limit: float) -> tuple[GuestDisk, ...]:
    """Whole disks, without partitions and what is built on disks. Raises as `GuestAgent.call`."""
    answer = await agent.call("guest-get-disks", limit)
    found = []
    for each in answer[:_MOST] if isinstance(answer, list) else ():
        if not isinstance(each, dict) or each.get("partition") or each.get("dependencies"):
            continue
        address = each.get("address")
        serial = address.get("serial", "") if isinstance(address, dict) else ""
        found.append(GuestDisk(_text(each.get("name")), _text(serial)))
    return tuple(found)


async def guest_disk_size(agent: GuestAgent, name: str, limit: float) -> int | None:
    """Bytes of a disk by its name in a Linux guest; None: it has no such file. Raises as `call`."""
    match = _LINUX.fullmatch(name)
    if not match:
        return None
    said = await agent.read_file(f"/sys/class/block/{match[1]}/size", 32, limit)
    text = said.strip()
    return int(text) * _SECTOR if text.isdigit() and len(text) < 16 else None


def _text(value: Any) -> str:
    return value[:200] if isinstance(value, str) else ""
