"""USB devices in records, with a machine that takes them or does not."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.host import usb_devices as host_devices
from holdfast.spec.devices import NewUsb
from holdfast.spec.units import GIB
from holdfast.spec.vm import VmSpec
from holdfast.vm import usb, usb_devices
from holdfast.vm.disk_specs import MemoryNotMovable, require_movable_memory
from holdfast.vm.records import VmRecord, own_specs
from holdfast.vm.rooms import Rooms
from holdfast.vm.usb import UsbGivenTwice, UsbNotFound, UsbWork
from holdfast.vm.usb_devices import UsbDeviceInUse, open_all

SPEC = VmSpec(cpus=1, memory=GIB)
STICK, TWIN = (host_devices.UsbHostDevice(1, port, 4, "0951:1666", "Stick") for port in ("2", "3"))


@pytest.fixture(autouse=True)
def _one_stick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.touch()
    for module in (usb, usb_devices):
        monkeypatch.setattr(module, "find_usb", lambda host: TWIN if host == TWIN.place else STICK)
        monkeypatch.setattr(module, "open_usb", lambda _: os.open(node, os.O_RDWR))


class Machine:
    """What of a machine that runs is asked here; it is its own plug for everything."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = takes
        self.plugged: set[str] = set()
        self.usb = self.nics = self.cds = self.size = self

    async def add(self, usb_id: str, fd: int) -> None:
        os.fstat(fd)
        if not self.takes:
            raise RuntimeError("QEMU says no")
        self.plugged.add(usb_id)

    async def remove(self, usb_id: str) -> None:
        self.plugged.remove(usb_id)

    async def has(self, usb_id: str) -> bool:
        return usb_id in self.plugged

    async def close(self, usb_id: str) -> None:
        assert usb_id not in self.plugged

    async def now(self) -> Any:
        return SimpleNamespace(cpus=1, dimms=())


class Owner:
    def __init__(self, name: str, others: list["Owner"], machine: Machine | None) -> None:
        self.row = SimpleNamespace(spec=SPEC.model_dump(mode="json"), running_spec=None)
        if machine:
            self.row.running_spec = SPEC.model_dump(mode="json")
        self.name, self.machine, self._others = name, machine, others
        others.append(self)
        self.record = self.stored()

    @property
    def specs(self) -> list[VmSpec]:
        return own_specs(cast(VmRecord, self.record)) if self.machine else [self.record.spec]

    def stored(self) -> Any:
        running = self.row.running_spec
        return SimpleNamespace(
            id=self.name,
            name=self.name,
            spec=VmSpec.model_validate(self.row.spec),
            running_spec=VmSpec.model_validate(running) if running else None,
        )

    def admits(self, _: object) -> bool:
        return True

    async def request(self, action: Callable[[], Awaitable[Any]]) -> Any:
        return await action()

    async def change(self, apply: Callable[[Any], None], *_: object) -> Any:
        apply(self.row)
        self.record = self.stored()
        return self.record

    def rooms(self) -> Rooms:
        async def everyone() -> list[Any]:
            return [each.record for each in self._others]

        async def change(_: str, apply: Callable[[Any], None], *__: object) -> Any:
            return await self.change(apply)

        return cast(Rooms, SimpleNamespace(records=SimpleNamespace(all=everyone, change=change)))

    def work(self) -> UsbWork:
        async def named(_: str) -> Any:
            return self

        return UsbWork(self.rooms(), named)

    def ids(self) -> tuple[list[str], list[str]]:
        now, then = self.record.running_spec, self.record.spec
        return [each.id for each in now.usb] if now else [], [each.id for each in then.usb]


async def test_a_device_is_in_both_specifications_until_it_is_removed() -> None:
    owner = Owner("a", [], Machine())
    added = await owner.work().add("a", NewUsb(device="0951:1666"))
    assert (added.id, added.plugged, added.after_next_start) == ("usb0", True, True)
    assert owner.ids() == (["usb0"], ["usb0"])
    with pytest.raises(MemoryNotMovable):
        require_movable_memory(owner.record)
    with pytest.raises(UsbGivenTwice):
        await owner.work().add("a", NewUsb(device="1.2"))
    gone = await owner.work().remove("a", "usb0")
    assert (gone.plugged, gone.after_next_start) == (False, False)
    assert owner.ids() == ([], []) and owner.machine is not None and owner.machine.plugged == set()
    require_movable_memory(owner.record)
    with pytest.raises(UsbNotFound):
        await owner.work().remove("a", "usb0")


async def test_what_qemu_does_not_take_leaves_nothing() -> None:
    owner = Owner("a", [], Machine(takes=False))
    with pytest.raises(RuntimeError):
        await owner.work().add("a", NewUsb(device="1.2"))
    assert owner.ids() == ([], [])


async def test_a_vm_that_is_off_gets_it_at_its_start_unless_another_has_it() -> None:
    everyone: list[Owner] = []
    off, runs = Owner("off", everyone, None), Owner("runs", everyone, Machine())
    await off.work().add("off", NewUsb(device="1.2"))
    assert off.ids() == ([], ["usb0"])
    await runs.work().add("runs", NewUsb(device="0951:1666"))
    with pytest.raises(UsbDeviceInUse):
        await open_all(off.rooms(), "off", off.record.spec)
    await off.work().add("off", NewUsb(device="1.3"))  # another of the same model
    await runs.work().remove("runs", "usb0")
    opened = await asyncio.wait_for(open_all(off.rooms(), "off", off.record.spec), 5)
    assert [device.id for device, _ in opened] == ["usb0", "usb1"]
    for _, fd in opened:
        os.close(fd)
