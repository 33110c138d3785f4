"""Network cards put into and taken out of a running machine: host's side first in, last out."""

import contextlib

from holdfast.machine.devices.nics import backend, backend_id, device_id, front
from holdfast.machine.devices.ports import NIC_PORTS
from holdfast.machine.hotplug import UNPLUG_SECONDS, HotPlug
from holdfast.qmp.session import QmpSession
from holdfast.spec.attachment import NicAttachment, TapAttachment
from holdfast.spec.errors import HoldfastError
from holdfast.spec.vm import Nic


class NicPlug:
    """The network cards of one QEMU."""

    def __init__(self, session: QmpSession) -> None:
        self._session = session
        self._hotplug = HotPlug(session)

    async def add(self, card: Nic, attachment: NicAttachment) -> None:
        """Plug a card into the port of its number; QEMU gets copies of the attachment's descriptors.

        Raises:
            QmpRefused: QEMU did not take it; nothing of it is left there.
        """
        net = backend(card, attachment)
        if isinstance(attachment, TapAttachment):
            net["fd"] = await self._hand_over(attachment.fd, f"tap-{card.id}")
            if attachment.vhost_fd is not None:
                net["vhostfd"] = await self._hand_over(attachment.vhost_fd, f"vhost-{card.id}")
        try:
            await self._session.execute("netdev_add", net)
            place = NIC_PORTS.places([card.id])[card.id]
            await self._hotplug.add(front(card, place))
        except BaseException:
            await self.close(card.id)
            raise

    async def remove(self, nic: str, limit: float = UNPLUG_SECONDS) -> None:
        """Ask the guest to let go of a card, then close its port; also where there is none of them.

        Raises:
            UnplugIgnored, UnplugRefused: the card is still there, and works.
        """
        await self._hotplug.remove(device_id(nic), limit)
        await self.close(nic)

    async def cut(self, nic: str) -> None:
        """Take a card's link down for good; the guest keeps the card until it lets go of it.

        Its backend stays: QEMU ends itself where a TAP is closed under a card (tap_fd_set_vnet_hdr_len).
        """
        await self._session.execute("set_link", {"name": device_id(nic), "up": False})

    async def renew_link(self, nic: str) -> None:
        """Take the link down and up, so that the guest asks for an address again."""
        for up in (False, True):
            await self._session.execute("set_link", {"name": device_id(nic), "up": up})

    async def has(self, nic: str) -> bool:
        return await self._hotplug.has(device_id(nic))

    async def _hand_over(self, fd: int, name: str) -> str:
        await self._session.send_fd(fd, name)
        return name

    async def close(self, nic: str) -> None:
        """Close a card's port in QEMU, and descriptors that no port took; also where there are none."""
        with contextlib.suppress(HoldfastError):
            await self._session.execute("netdev_del", {"id": backend_id(nic)})
        for name in (f"tap-{nic}", f"vhost-{nic}"):
            with contextlib.suppress(HoldfastError):
                await self._session.execute("closefd", {"fdname": name})
