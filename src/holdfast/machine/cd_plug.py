"""CD drives, put into a running machine, and the discs in them."""

import contextlib
from pathlib import Path

from holdfast.machine.devices.cds import device_id, front, medium, node_name, places
from holdfast.machine.hotplug import HotPlug
from holdfast.qmp.errors import QmpRefused
from holdfast.qmp.session import QmpSession
from holdfast.spec.attachment import CdAttachment


class CdPlug:
    """The CD drives of one QEMU."""

    def __init__(self, session: QmpSession) -> None:
        self._session = session
        self._hotplug = HotPlug(session)

    async def add(self, drive: CdAttachment) -> None:
        """Plug the first drive of a machine, with its disc in it.

        Raises:
            QmpRefused: QEMU did not take it; nothing of it is left there.
        """
        await self.close(drive.id)
        try:
            if drive.path is not None:
                await self._session.execute("blockdev-add", medium(drive))
            await self._hotplug.add(front(drive, places([drive.id])[drive.id], 0))
        except BaseException:
            await self.close(drive.id)
            raise

    async def has(self, drive: str) -> bool:
        return await self._hotplug.has(device_id(drive))

    async def close(self, drive: str) -> None:
        """Close a disc that is in no drive; nothing happens where there is none, or a drive has it."""
        with contextlib.suppress(QmpRefused):
            await self._session.execute("blockdev-del", {"node-name": node_name(drive)})

    async def set_medium(self, drive: str, path: Path | None) -> None:
        """Put an ISO file into a drive, or empty it."""
        device = device_id(drive)
        if path is None:
            await self._session.execute("eject", {"id": device, "force": True})
            return
        await self._session.execute(
            "blockdev-change-medium",
            {"id": device, "filename": str(path), "format": "raw", "read-only-mode": "read-only"},
        )
