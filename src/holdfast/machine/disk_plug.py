"""Disks put into, taken out of and changed in a running machine.

    in:    layers' nodes, throttle group, throttle node, device        a failure takes all of it back
    out:   device (the guest lets go of it), throttle node, layers' nodes, throttle group

All of it can be asked for again: what is there already stays, what is gone already is passed over.
"""

import base64
import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.machine.devices.disks import (
    IO_THREAD,
    chain_nodes,
    descriptor_set,
    device_id,
    disk_numbers,
    filter_node,
    front,
    throttle_group,
    throttle_limits,
    throttle_node,
    throttle_object,
)
from holdfast.machine.devices.ports import DISK_PORTS
from holdfast.machine.disk_layers import block_nodes
from holdfast.machine.hotplug import UNPLUG_SECONDS, HotPlug
from holdfast.qmp.errors import QmpRefused
from holdfast.qmp.session import QmpSession
from holdfast.spec.attachment import DiskAttachment
from holdfast.spec.errors import Conflict, Unsupported
from holdfast.spec.vm import DiskBus, IoLimits

_RESIZE_SECONDS = 300.0  # the file system may have to write out what was preallocated


class NoFreePort(Conflict):
    id = "no-free-disk-port"


class NotGrowableNow(Unsupported):
    id = "disk-not-growable-now"

    @classmethod
    def of(cls, disk: str) -> "NotGrowableNow":
        return cls(
            f"{disk} is an NVMe disk, to which QEMU cannot give another size while its VM runs",
            value=disk,
            cure="Stop the VM first; disks on virtio and SCSI grow while it runs.",
        )


class DiskPlug:
    """The disks of one QEMU."""

    def __init__(self, session: QmpSession, *, io_uring: bool) -> None:
        self._session = session
        self._io_uring = io_uring
        self._hotplug = HotPlug(session)

    async def know(self, secrets: Mapping[str, bytes]) -> None:
        """Make the secret objects that layers need to be opened, where QEMU has none of that id."""
        for name, secret in secrets.items():
            if name not in await self._objects():
                data = {"data": base64.b64encode(secret).decode(), "format": "base64"}
                await self._session.execute("object-add", {"qom-type": "secret", "id": name, **data})

    async def _objects(self) -> set[str]:
        return {each["name"] for each in await self._session.execute("qom-list", {"path": "/objects"})}

    async def has(self, disk: str) -> bool:
        """Whether the guest's machine has the disk's device."""
        return await self._hotplug.has(device_id(disk))

    async def require_place(self, disk: str, bus: DiskBus, others: Iterable[str]) -> int | None:
        """Number of the port that a disk of this id gets; None on the SCSI bus, which has no ports.

        `others` are the disks that the machine has on ports.

        Raises:
            NoFreePort: the machine was started without a port of that number.
        """
        if bus is DiskBus.SCSI:
            return None
        place = DISK_PORTS.places([*others, disk])[disk]
        if not await self._hotplug.has(DISK_PORTS.port(place)):
            raise NoFreePort(
                f"the machine has no free port for {disk}: it was started with fewer",
                value=disk,
                cure="Use --bus scsi, or stop the VM first: it gets more ports at its next start.",
            )
        return place

    async def add(self, attachment: DiskAttachment, place: int | None, fd: int | None = None) -> None:
        """Plug a disk; `place` is what `require_place` said, `fd` what its `opened_place` stands for.

        Raises:
            QmpRefused: QEMU did not take it; nothing of it is left there.
        """
        if await self.has(attachment.id):
            return
        await self.close(attachment.id)  # of an attempt that a crash interrupted
        try:
            if fd is not None:
                await self._session.add_to_set(fd, descriptor_set(attachment.id))
            for node in chain_nodes(attachment, self._io_uring):
                await self._session.execute("blockdev-add", node)
            await self._session.execute("object-add", throttle_object(attachment))
            await self._session.execute("blockdev-add", throttle_node(attachment))
            number = disk_numbers([attachment.id])[attachment.id]
            threaded = IO_THREAD in await self._objects()
            await self._hotplug.add(front(attachment, number, place, threaded))
        except BaseException:
            await self.close(attachment.id)
            raise

    async def remove(self, disk: str, limit: float = UNPLUG_SECONDS) -> None:
        """Ask the guest to let go of a disk, then close its layers; also where there is none of them.

        Raises:
            UnplugIgnored, UnplugRefused: the disk is still there, and works.
        """
        await self._hotplug.remove(device_id(disk), limit)
        await self.close(disk)

    async def close(self, disk: str) -> None:
        """Close the layers and the throttle group of a disk whose device is gone; what is in use stays."""
        await self.drop_nodes(re.compile(rf"th-{re.escape(disk)}"))
        await self.drop_nodes(re.compile(rf"[df]-{re.escape(disk)}(-\d+|\.\w+)?"))
        with contextlib.suppress(QmpRefused):
            await self._session.execute("object-del", {"id": throttle_group(disk)})
        with contextlib.suppress(QmpRefused):
            await self._session.execute("remove-fd", {"fdset-id": descriptor_set(disk)})

    async def drop_nodes(self, names: re.Pattern[str]) -> None:
        """Close every node whose whole name fits and that nothing uses."""
        left = {name for name in await self.nodes() if names.fullmatch(name)}
        while left:
            closed = {name for name in left if await self._dropped(name)}
            if not closed:
                return
            left -= closed

    async def _dropped(self, node: str) -> bool:
        try:
            await self._session.execute("blockdev-del", {"node-name": node})
        except QmpRefused:
            return False
        return True

    async def nodes(self) -> dict[str, dict[str, Any]]:
        """As `block_nodes`."""
        return await block_nodes(self._session)

    async def resize(self, disk: str, bus: DiskBus, size: int) -> None:
        """Let the guest see `size` bytes.

        Raises:
            NotGrowableNow: the device does not take another size while it is there.
            QmpRefused: QEMU could not do it.
        """
        if bus is DiskBus.NVME:
            raise NotGrowableNow.of(disk)
        arguments = {"node-name": filter_node(disk), "size": size}
        await self._session.execute("block_resize", arguments, _RESIZE_SECONDS)

    async def size(self, disk: str) -> int:
        """Bytes that the guest sees."""
        return int((await self.nodes())[filter_node(disk)]["image"]["virtual-size"])

    async def limit(self, disk: str, limits: IoLimits) -> None:
        """Limits in place of those that hold. Raises QmpRefused."""
        value = throttle_limits(limits)
        told = {"path": f"/objects/{throttle_group(disk)}", "property": "limits", "value": value}
        await self._session.execute("qom-set", told)
