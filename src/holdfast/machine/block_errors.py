"""Disks whose storage failed under a running machine.

Where a device's policy is to stop (`werror`, `rerror`; QEMU, docs/system/qemu-block-drivers), QEMU
keeps the request that failed, stops the guest in the run state `io-error` and tries that request
again at `cont`: the guest sees no error, only that time went by. Which disks and why stays readable
(`query-block`, `io-status`; qapi/block-core.json), so a daemon that comes back finds it as well.
"""

import re

from holdfast.qmp.session import QmpSession

STALLED = "io-error"
"""QEMU's RunState while it waits so."""
_DEVICE = re.compile(r"(?:^|/)disk-([a-z0-9]+)(?:/|$)", re.ASCII)


class BlockErrors:
    """The failed requests of one QEMU."""

    def __init__(self, session: QmpSession) -> None:
        self._session = session

    async def stalled(self) -> dict[str, bool]:
        """Ids of the disks that wait, and whether it is for want of space; empty where the guest may run."""
        if (await self._session.execute("query-status"))["status"] != STALLED:
            return {}
        found = {}
        for block in await self._session.execute("query-block"):
            named = _DEVICE.search(block.get("qdev", ""))
            if named and block.get("io-status", "ok") != "ok":
                found[named[1]] = block["io-status"] == "nospace"
        return found
