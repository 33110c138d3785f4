"""Devices that come and go while a VM runs: requests, and how what became of them is told."""

from typing import Annotated

from pydantic import AfterValidator, Field

from holdfast.spec.model import Frozen
from holdfast.spec.vm import USB_NAME
from holdfast.spec.vm_requests import station


class NicChange(Frozen):
    """New settings of a NIC; None leaves a setting as it is."""

    switch: str | None = None
    """Name of the switch; the empty string means the user-mode network."""
    vlan: int | None = Field(default=None, ge=0, le=4094)
    """IEEE 802.1Q VLAN id of the port; 0 means untagged."""
    mac: Annotated[str, Field(max_length=17), AfterValidator(station)] | None = None
    """Takes effect at the next start."""


class Plugged(Frozen):
    """Where a device is, seen from the machine, from its guest and from the next start."""

    id: str
    plugged: bool
    """In the machine that runs now."""
    after_next_start: bool
    """In the machine that the next start makes."""
    guest_sees: bool | None = None
    """By the word of the guest's agent; None: the guest cannot be asked, or has not said."""
    note: str = ""
    """What waits, and why."""


class NicView(Plugged):
    mac: str
    switch: str | None
    vlan: int | None


class NicDone(NicView):
    """What a change of a NIC came to."""

    free_ports: int | None = None
    """How many NICs more the machine that runs has room for; None: none runs."""


class NewUsb(Frozen):
    device: str = Field(pattern=USB_NAME, max_length=40)
    """`VENDOR:PRODUCT` in hex, or `BUS.PORT` such as `1.2` or `1.2.3`."""


class UsbView(Plugged):
    device: str
    """As it was named: `VENDOR:PRODUCT` or `BUS.PORT`."""
