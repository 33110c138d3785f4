"""Processors and memory of a running machine, as QEMU has them, and more or less of them.

Both are ACPI hot-plug (QEMU, docs/specs/acpi_cpu_hotplug.rst and acpi_mem_hotplug.rst). Processors are
counted from the first one on without gaps, so that their number says all about them.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

from holdfast.machine.devices.memory import dimm_backend, dimm_backend_id, dimm_front, dimm_id
from holdfast.machine.hotplug import UNPLUG_SECONDS, HotPlug, UnplugIgnored, UnplugRefused
from holdfast.qmp.errors import QmpRefused, QmpTimedOut
from holdfast.qmp.session import QmpSession
from holdfast.spec.vm import Dimm


@dataclass(frozen=True)
class MachineSize:
    """How much a machine has now."""

    cpus: int
    dimms: tuple[Dimm, ...]


class SizePlug:
    """Processors and DIMMs of one QEMU."""

    def __init__(self, session: QmpSession) -> None:
        self._session = session
        self._hotplug = HotPlug(session)

    async def now(self) -> MachineSize:
        cpus = sum("qom-path" in each for each in await self._cpus())
        devices = await self._session.execute("query-memory-devices")
        dimms = [each["data"] for each in devices if each["type"] == "dimm"]
        found = (Dimm(slot=each["slot"], size=each["size"], address=each["addr"]) for each in dimms)
        return MachineSize(cpus, tuple(sorted(found, key=lambda dimm: dimm.slot)))

    async def add_cpu(self) -> None:
        """One processor more. Raises QmpRefused."""
        free = next(each for each in await self._cpus() if "qom-path" not in each)
        props = free["props"]
        await self._hotplug.add({"driver": free["type"], "id": f"cpu-{props['core-id']}", **props})

    async def remove_cpu(self, limit: float = UNPLUG_SECONDS) -> None:
        """One processor less, the last one, once the guest lets go of it.

        Raises:
            UnplugIgnored, UnplugRefused: it keeps it.
            QmpRefused
        """
        last = [each["qom-path"] for each in await self._cpus() if "qom-path" in each][-1]
        async with self._session.listen("ACPI_DEVICE_OST", "DEVICE_DELETED") as listener:
            await self._session.execute("device_del", {"id": last})
            try:
                while any(each.get("qom-path") == last for each in await self._cpus()):
                    event = await listener.get(limit)
                    if _refusal(event, "CPU"):
                        raise UnplugRefused(
                            "the guest refused to let go of a processor",
                            value=last,
                            cure="It is gone at the next start.",
                        )
            except QmpTimedOut:
                raise UnplugIgnored(
                    f"the guest did not let go of a processor within {limit:g} seconds",
                    value=last,
                    cure="Try again once the guest has started; it is gone at the next start.",
                ) from None

    async def add_dimm(self, slot: int, size: int) -> None:
        """`size` bytes of memory more; QEMU chooses their address. Raises QmpRefused."""
        await self._session.execute("object-add", dimm_backend(slot, size))
        try:
            await self._hotplug.add(dimm_front(slot))
        except BaseException:
            await self.forget_dimm(slot)
            raise

    async def remove_dimm(self, slot: int, limit: float = UNPLUG_SECONDS) -> None:
        """Take a DIMM out once the guest lets go of it. Raises UnplugIgnored, UnplugRefused."""
        await self._hotplug.remove(dimm_id(slot), limit)
        await self.forget_dimm(slot)

    async def forget_dimm(self, slot: int) -> None:
        """Give the memory of a DIMM that is gone back to the host; also where there is none."""
        with contextlib.suppress(QmpRefused):
            await self._session.execute("object-del", {"id": dimm_backend_id(slot)})

    async def _cpus(self) -> list[dict[str, Any]]:
        """Those that are there and those that can come, from the first one on."""
        found: list[dict[str, Any]] = await self._session.execute("query-hotpluggable-cpus")
        return sorted(found, key=lambda each: (each["props"]["socket-id"], each["props"]["core-id"]))


def _refusal(event: dict[str, Any], kind: str) -> bool:
    """The guest's word on an ejection (ACPI 6.5, table 6.52): success is 0, 0x84 'in progress' goes on."""
    info = event["data"].get("info", {})
    is_ejection = event["event"] == "ACPI_DEVICE_OST" and info.get("source") in (3, 0x103)
    return is_ejection and info.get("slot-type") == kind and info.get("status") not in (0, 0x84)
