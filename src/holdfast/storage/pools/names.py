"""Names of volumes where there are no folders: `hf.<VM name>.<volume>`, and `.part` after it for a draft.

People read them, so the VM's name stands in them as far as LVM and Ceph allow.
"""

import re
from collections.abc import Iterable
from urllib.parse import quote

from holdfast.storage.pools.pool import VolumeId, VolumesInTheWay

PREFIX = "hf."
PART = ".part"


def flat_name(volume: VolumeId) -> str:
    return f"{_prefix(volume.vm)}{volume.name}"


def _prefix(vm: str) -> str:
    """LVM allows no spaces, and gives meanings of its own to names with `_`; `.` parts ours."""
    escaped = re.sub("[_.~]", lambda each: f"%{ord(each[0]):02X}", quote(vm, safe=""))
    return f"{PREFIX}{escaped.replace('%', '+')}."


def of_vm(names: Iterable[str], vm: str) -> list[str]:
    return sorted(name for name in names if name.startswith(_prefix(vm)))


def renames(names: Iterable[str], old: str, new: str, pool: str) -> list[tuple[str, str]]:
    """From what to what, for a VM's volumes that have not its new name yet. Raises VolumesInTheWay."""
    there = set(names)
    pairs = [(name, _prefix(new) + name.removeprefix(_prefix(old))) for name in of_vm(there, old)]
    for _, after in pairs:
        if after in there:
            raise VolumesInTheWay(
                f"the pool {pool!r} already has a volume {after} of a VM {new!r}",
                value=after,
                cure="Rename that volume, or choose another name for the VM.",
            )
    return pairs
