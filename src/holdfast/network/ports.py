"""A VM's network interface, plugged into its switch.

A port is a TAP interface that is not persistent: the kernel removes it when the last descriptor
closes, so it ends with QEMU whatever becomes of the daemon (Linux Documentation/networking/tuntap).
"""

import asyncio
import contextlib
import fcntl
import os
import struct

from holdfast.host.folders import StateFolder
from holdfast.network import links
from holdfast.network.links import NetworkFailed, NetworkNotPermitted
from holdfast.network.switches import SwitchBoard
from holdfast.network.user_mode import attach_user_mode
from holdfast.spec.attachment import NicAttachment, TapAttachment, UnpluggedAttachment
from holdfast.spec.switch import SwitchSpec, SwitchType
from holdfast.spec.vm import Nic

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000


class Ports:
    def __init__(self, switches: SwitchBoard, state: StateFolder) -> None:
        self._switches = switches
        self._state = state

    async def attach(self, vm_id: str, vm_name: str, nic: Nic) -> NicAttachment:
        """Plug a NIC in. The caller hands a TAP's descriptors to QEMU, then closes its own.

        Raises:
            SwitchMissing: its switch is not there.
            NetworkNotPermitted, NetworkFailed: the host did not let us; nothing is left open.
        """
        if nic.unplugged:
            return UnpluggedAttachment(hub=int(nic.id.removeprefix("nic")))
        spec = await self._spec(nic)
        if spec is None:
            return attach_user_mode(vm_name)
        name = links.tap_name(self._state.mark, vm_id, nic.id)
        fd = await asyncio.to_thread(_open_tap, name)
        try:
            if not nic.cut:
                await self._join(spec, name, nic, vm_name)
        except BaseException:
            os.close(fd)
            raise
        return TapAttachment(fd=fd, vhost_fd=_open_vhost(), interface=name)

    async def is_user_mode(self, nic: Nic) -> bool:
        """Whether the NIC has no port of its own on the host. Raises SwitchMissing."""
        return await self._spec(nic) is None

    async def move(self, vm_id: str, vm_name: str, nic: Nic) -> None:
        """See that the port of a NIC that is plugged in is where its switch and VLAN say.

        Nothing happens where it is there already. Raises as `attach` does, and ValueError where the
        NIC has no port.
        """
        spec = await self._spec(nic)
        if spec is None:
            raise ValueError(f"{nic.id} is on the user-mode network")
        name = links.tap_name(self._state.mark, vm_id, nic.id)
        if not await asyncio.to_thread(links.is_joined, self._switches.bridge(spec.name), name, nic.vlan):
            await asyncio.to_thread(links.leave, name)
            await self._join(spec, name, nic, vm_name)

    async def _spec(self, nic: Nic) -> SwitchSpec | None:
        """The switch with a bridge that a NIC is on; None: the user-mode network."""
        if nic.switch is None:
            return None
        spec = await self._switches.get(nic.switch)
        return None if spec.type is SwitchType.USER else spec

    async def _join(self, spec: SwitchSpec, name: str, nic: Nic, vm_name: str) -> None:
        bridge = self._switches.bridge(spec.name)
        await asyncio.to_thread(links.join, bridge, name, nic.vlan)
        if spec.interface and nic.vlan is not None:
            await asyncio.to_thread(links.join, bridge, spec.interface, nic.vlan, tagged=True)
        if spec.type is SwitchType.INTERNAL:
            service = self._switches.name_service(spec)
            await asyncio.to_thread(service.register, nic.mac, vm_name)

    async def cut(self, vm_id: str, nic: Nic) -> None:
        """Take a port off its switch; it is gone when QEMU closes it."""
        if not await self.is_user_mode(nic):
            await asyncio.to_thread(links.leave, links.tap_name(self._state.mark, vm_id, nic.id))

    async def detach(self, vm_id: str, nic: Nic) -> None:
        """Remove what may be left of a port; nothing happens where nothing is."""
        if nic.switch is not None:
            await asyncio.to_thread(links.remove_link, links.tap_name(self._state.mark, vm_id, nic.id))

    async def forget(self, nic: Nic) -> None:
        """The VM is deleted or renamed: its name no longer goes with this MAC address."""
        if nic.switch is None:
            return
        spec = await self._switches.get(nic.switch)
        if spec.type is SwitchType.INTERNAL:
            await asyncio.to_thread(self._switches.name_service(spec).forget, nic.mac)

    async def addresses(self, nic: Nic) -> tuple[str, ...]:
        """IPv4 addresses of a NIC as far as the host knows: leased, else seen."""
        if nic.switch is None:
            return ()
        spec = await self._switches.get(nic.switch)
        if spec.type is SwitchType.USER:
            return ()
        found: list[str] = []
        if spec.type is SwitchType.INTERNAL:
            found = await asyncio.to_thread(self._switches.name_service(spec).leased, nic.mac)
        if not found:
            bridge = self._switches.bridge(spec.name)
            found = await asyncio.to_thread(links.neighbours, bridge, nic.mac)
        return tuple(found)


def _open_tap(name: str) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkNotPermitted(
            f"/dev/net/tun cannot be opened: {error.strerror}",
            cure="Load the kernel module `tun`, run the daemon as root, or use the user-mode network.",
        ) from error
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(fd, _TUNSETIFF, request)
        os.set_inheritable(fd, True)
    except OSError as error:
        os.close(fd)
        if isinstance(error, PermissionError):
            raise NetworkNotPermitted(
                "this daemon may not make TAP interfaces",
                cure="Run it as root, or use the user-mode network (no switch).",
            ) from error
        raise NetworkFailed(f"the TAP interface {name} was not made: {error.strerror}", value=name) from error
    return fd


def _open_vhost() -> int | None:
    with contextlib.suppress(OSError):
        fd = os.open("/dev/vhost-net", os.O_RDWR | os.O_CLOEXEC)
        os.set_inheritable(fd, True)
        return fd
    return None
