"""Devices of VMs that live in a dict."""

from typing import Any

from holdfast.spec.devices import NewUsb, NicChange, NicDone, NicView, UsbView
from holdfast.spec.errors import NotFound
from holdfast.spec.vm_requests import NewNic


class FakeNics:
    def __init__(self) -> None:
        self.cards: dict[str, dict[str, Any]] = {}

    async def add(self, name: str, wanted: NewNic) -> NicDone:
        nic = f"nic{len(self.cards)}"
        mac = wanted.mac or f"02:00:00:00:00:{len(self.cards):02x}"
        self.cards[nic] = {"id": nic, "mac": mac, "switch": wanted.switch, "vlan": wanted.vlan}
        return NicDone(plugged=True, after_next_start=True, guest_sees=True, free_ports=7, **self.cards[nic])

    async def remove(self, name: str, nic: str, force: bool) -> NicDone:
        if nic not in self.cards:
            raise NotFound(f"no {nic}", value=nic)
        note = "It is cut off from the network." if force else ""
        return NicDone(plugged=force, after_next_start=False, note=note, **self.cards.pop(nic))

    async def change(self, name: str, nic: str, change: NicChange) -> NicDone:
        self.cards[nic] |= change.model_dump(exclude_none=True)
        return NicDone(plugged=True, after_next_start=True, **self.cards[nic])

    async def list(self, name: str) -> tuple[NicView, ...]:
        return tuple(NicView(plugged=True, after_next_start=True, **card) for card in self.cards.values())


class FakeUsb:
    def __init__(self) -> None:
        self.devices: dict[str, str] = {}

    async def add(self, name: str, wanted: NewUsb) -> UsbView:
        device = f"usb{len(self.devices)}"
        self.devices[device] = wanted.device
        return UsbView(id=device, device=wanted.device, plugged=True, after_next_start=True)

    async def remove(self, name: str, device: str) -> UsbView:
        if device not in self.devices:
            raise NotFound(f"no {device}", value=device)
        gone = self.devices.pop(device)
        return UsbView(id=device, device=gone, plugged=False, after_next_start=False)

    async def list(self, name: str) -> tuple[UsbView, ...]:
        return tuple(
            UsbView(id=each, device=device, plugged=True, after_next_start=True)
            for each, device in self.devices.items()
        )
