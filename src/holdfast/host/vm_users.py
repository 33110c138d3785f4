"""Whom VMs run as: a user of its own for each where the daemon is root, else the daemon's own.

The ids lie above what systemd and distributions give out (systemd, docs/UIDS-GIDS.md: nothing is
assigned from 1879048192 on but 65,536 ids at 2147352576), so they need no entry in /etc/passwd.
"""

import grp
import os

from holdfast.host.processes import Identity

FIRST_UID = 1_900_000_000


class VmUsers:
    def __init__(self) -> None:
        self._root = os.getuid() == 0
        self._groups = _device_groups()

    @property
    def converter(self) -> Identity | None:
        """Whom tools run as that read files from outside; no VM is this user."""
        return Identity(FIRST_UID, FIRST_UID) if self._root else None

    def of(self, number: int) -> Identity | None:
        """The user of the VM with this number; None: the daemon's own."""
        if not self._root:
            return None
        uid = FIRST_UID + number
        return Identity(uid, uid, self._groups)


def _device_groups() -> tuple[int, ...]:
    """The group that may open /dev/kvm, where there is one."""
    try:
        return (grp.getgrnam("kvm").gr_gid,)
    except KeyError:
        return ()
