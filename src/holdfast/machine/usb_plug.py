"""USB devices of the host, put into and taken out of a running machine."""

import contextlib

from holdfast.machine.devices.usb import descriptor_set, device_id, front
from holdfast.machine.hotplug import HotPlug
from holdfast.qmp.errors import QmpRefused
from holdfast.qmp.session import QmpSession


class UsbPlug:
    """The USB devices of one QEMU."""

    def __init__(self, session: QmpSession) -> None:
        self._session = session
        self._hotplug = HotPlug(session)

    async def add(self, usb_id: str, fd: int) -> None:
        """Plug a device; QEMU gets a copy of `fd`, a descriptor of its node.

        Raises:
            QmpRefused: QEMU did not take it; nothing of it is left there.
        """
        await self.close(usb_id)
        try:
            await self._session.add_to_set(fd, descriptor_set(usb_id))
            await self._hotplug.add(front(usb_id))
        except BaseException:
            await self.close(usb_id)
            raise

    async def remove(self, usb_id: str) -> None:
        """Take a device out; also where there is none. A guest is not asked: it is as if it were pulled."""
        await self._hotplug.remove(device_id(usb_id))
        await self.close(usb_id)

    async def has(self, usb_id: str) -> bool:
        return await self._hotplug.has(device_id(usb_id))

    async def close(self, usb_id: str) -> None:
        """Close the descriptor of a device that is gone; also where there is none."""
        with contextlib.suppress(QmpRefused):
            await self._session.execute("remove-fd", {"fdset-id": descriptor_set(usb_id)})
