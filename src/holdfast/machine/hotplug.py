"""Devices put into and taken out of a running machine.

Taking out is the guest's to agree to: QEMU passes the wish on, and tells by an event that the
device is gone (`DEVICE_DELETED`) or that the guest refused (`DEVICE_UNPLUG_GUEST_ERROR`; QEMU,
qapi/qdev.json). A guest that is starting, or has no driver, does neither.
"""

import contextlib
from typing import Any

from holdfast.qmp.errors import QmpRefused, QmpTimedOut
from holdfast.qmp.session import QmpSession
from holdfast.spec.errors import Failed, TimedOut

UNPLUG_SECONDS = 15.0


class UnplugIgnored(TimedOut):
    id = "unplug-ignored"


class UnplugRefused(Failed):
    id = "unplug-refused"


class HotPlug:
    """The devices of one QEMU."""

    def __init__(self, session: QmpSession) -> None:
        self._session = session

    async def add(self, device: dict[str, Any]) -> None:
        """Plug a device (`device_add`: driver, id, bus, ...). Raises QmpRefused."""
        await self._session.execute("device_add", device)

    async def has(self, device_id: str) -> bool:
        """Whether a device with this id is there."""
        try:
            await self._session.execute("qom-list", {"path": f"/machine/peripheral/{device_id}"})
        except QmpRefused:
            return False
        return True

    async def remove(self, device_id: str, limit: float = UNPLUG_SECONDS) -> None:
        """Ask the guest to let go of a device, and return once it is gone; also where there is none.

        May be called again for one whose guest did not answer: the wish is passed on once more.

        Raises:
            UnplugIgnored: the guest did not answer within `limit` seconds; the device is still there,
                and may yet go.
            UnplugRefused: the guest said no.
        """
        async with self._session.listen("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR") as listener:
            if not await self.has(device_id):
                return
            # A removal that is under way already refuses a second wish; its event comes all the same.
            with contextlib.suppress(QmpRefused):
                await self._session.execute("device_del", {"id": device_id})
            try:
                while await self.has(device_id):
                    event = await listener.get(limit)
                    if event["data"].get("device") != device_id:
                        continue
                    if event["event"] == "DEVICE_UNPLUG_GUEST_ERROR":
                        raise UnplugRefused(
                            f"the guest refused to let go of {device_id}",
                            value=device_id,
                            cure="End what uses the device in the guest and try again.",
                        )
                    return
            except QmpTimedOut:
                if await self.has(device_id):
                    raise UnplugIgnored(
                        f"the guest did not answer the wish to take {device_id} out within {limit:g} seconds",
                        value=device_id,
                        cure="Try again once the guest has started; or force it, and the device goes for good"
                        " when the guest restarts.",
                    ) from None
